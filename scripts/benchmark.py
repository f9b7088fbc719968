"""What a training step costs, beside the machine's limit and beside what people use today:

    python scripts/benchmark.py                                  # ResNet-18 on CIFAR-10's sizes
    python scripts/benchmark.py model.depth=50 dataset=imagenet --steps 0,1 --batch 256 --compile
    python scripts/benchmark.py --parts memory,growth
    python scripts/benchmark.py --parts program                  # --help, first step, sweep, report

Words are those of `python -m sat.run`; images are random pixels, and nothing is downloaded. Tables
go to the screen, and with all numbers (`benchmark.json`) and a figure into the folder of --out.
`torchattacks` is compared where it is installed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PARTS = ("steps", "stages", "activations", "growth", "memory", "program")
USUAL = PARTS[:3]
SHORT = {"batch": 32, "steps": (0, 1, 2), "rounds": 3}  # a minute or two on two cores


def numbers(text: str, kind: type = int, least: float = 0) -> tuple[Any, ...]:
    """`0,1,2` as distinct numbers in ascending order."""
    try:
        found = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write numbers, such as 0,1,2") from None
    if found[0] < least:
        raise argparse.ArgumentTypeError(f"{text}: must be {least:g} or above")
    return tuple(found)


def positive(text: str) -> int:
    (number, *more) = numbers(text, least=1)
    if more:
        raise argparse.ArgumentTypeError(f"{text}: is more than one number")
    return number


def parts(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    for part in chosen:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part}: is none of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in chosen)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", usage="benchmark.py [key=value ...] [options]",
        description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("words", nargs="*", help="what sat.run takes: model=..., activation=..., dataset=...")
    add("--steps", type=numbers, metavar="K,K", help="attack steps (0,1,2,3,10)")
    add("--batch", type=positive, help="images a step (the schedule's; CIFAR-10: 128)")
    add("--rounds", type=positive, help="how often each is timed (7)")
    add("--device", help="auto, cpu, cuda, cuda:1")
    add("--threads", type=positive, help="of a CPU (as many as torch takes)")
    add(
        "--compile",
        action="store_true",
        help="times this program compiled as well;"
        " a compilation takes up to a minute, of each network",
    )
    add("--short", action="store_true", help="batch 32, k = 0, 1, 2, three rounds")
    add("--parts", type=parts, default=USUAL, help=f"of {','.join(PARTS)} ({','.join(USUAL)})")
    add("--gib", type=lambda text: numbers(text, float, 0.1), default=(24.0, 80.0, 141.0),
        metavar="G,G", help="memory, for the largest batch (24,80,141)")  # fmt: skip
    add("--out", type=Path, default=Path("outputs/benchmark"), help="folder (outputs/benchmark)")
    own = parser.parse_intermixed_args(given)
    for word in own.words:
        if "=" not in word:
            parser.error(f"{word}: is no key=value")
    usual = {"batch": None, "steps": (0, 1, 2, 3, 10), "rounds": 7}
    for key, value in (SHORT if own.short else usual).items():
        if getattr(own, key) is None:
            setattr(own, key, value)
    if own.batch:
        own.words.append(f"schedule.batch_size={own.batch}")
    if own.device:
        own.words.append(f"device={own.device}")
    return own


def about(case: Any, own: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, command line and what is timed."""
    import torch

    from sat.rundir.environment import environment

    told = environment(case.device)
    told["command"] = " ".join(["python", *sys.argv])
    told["words"] = list(case.words)
    told["batch"], told["shape"] = case.batch, list(case.sizes.shape)
    told["multiply_adds"], told["parameters"] = case.cost.multiply_adds, case.cost.parameters
    told["float32"] = {"matmul": torch.get_float32_matmul_precision(),
                       "cudnn_tf32": torch.backends.cudnn.allow_tf32}  # fmt: skip
    if case.device.type == "cuda":
        told["memory"] = torch.cuda.get_device_properties(case.device).total_memory
        told["cuda"], told["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    else:
        told["isa"] = isa(Path("/proc/cpuinfo"))
        told["isa_limit"] = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return told


def isa(file: Path) -> list[str]:
    """Of the processor's instruction sets those that decide the rate of a matrix product."""
    asked = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in asked if name in flags]


def headline(told: dict[str, Any]) -> str:
    on = told["device"]
    if "isa" in told:
        limit = f", limited to {told['isa_limit']}" if told["isa_limit"] else ""
        on += f" ({', '.join(told['isa']) or 'instruction sets unknown'}{limit})"
        on += f", {told['threads']} thread{'s' * (told['threads'] != 1)}"
    versions = ", ".join(f"{name} {told[name]}" for name in ("python", "torch", "timm"))
    commit = f", commit {told['commit'][:8]}" if told["commit"] else ""
    return "\n".join([
        "# Benchmark", "", f"{on}; {versions}{commit}; {told['time']}", "",
        f"    {told['command']}", "",
        f"{' '.join(told['words'])}: {told['parameters']:,} parameters,"
        f" {told['multiply_adds']:,} multiply-adds an image of {'x'.join(map(str, told['shape']))},"
        f" batch {told['batch']}",
    ])  # fmt: skip


def titled(case: Any) -> str:
    """Of the figure."""
    from sat.rundir.environment import environment

    told = environment(case.device)
    words = " ".join(word for word in case.words if not word.startswith("schedule.batch_size"))
    return f"{told['device']}, torch {told['torch']}; {words}, batch {case.batch}"


def progress(line: str) -> None:
    """On a terminal, what is being done; nothing where the output is kept."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def steps(case: Any, own: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from loops import loops_of
    from step_plot import draw_steps
    from steps import measure_steps, steps_text
    from stopwatch import products

    loops, notes = loops_of(case, own.compile)
    found = measure_steps(case, loops, products(case.device), own.steps, own.rounds, progress)
    figures = draw_steps(found, titled(case), own.out)
    return {**found, "notes": notes, "figures": [f.name for f in figures]}, "\n\n".join(
        [steps_text(found), *notes]
    )


def stages(case: Any, own: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    from loops import left_out
    from stages import measure_stages, stages_text
    from stopwatch import products

    k = 2 if 2 in own.steps else own.steps[-1]
    kinds = [False, True] if own.compile else [False]
    tops = products(case.device)
    found, texts = [], []
    for kind in kinds:
        try:
            found.append(measure_stages(case, tops, own.rounds, progress, k, kind))
            texts.append(stages_text(found[-1]))
        except Exception as error:  # torch's compiler raises many kinds
            if not kind:
                raise
            texts.append(left_out("the compiled step", error))
    return found, "\n\n".join(texts)


def activations(case: Any, own: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from activation_times import activations_text, measure_activations

    found = measure_activations(case, own.rounds, progress, own.compile)
    return found, activations_text(found)


def growth(case: Any, own: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from growth import growth_text, measure_growth

    found = measure_growth(case, own.rounds, progress, own.compile)
    return found, growth_text(found)


def memory(case: Any, own: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from memory import measure_memory, memory_text

    given = [word for word in own.words if not word.startswith("schedule.batch_size=")]
    found = measure_memory(given, own.gib, progress)
    return found, memory_text(found)


def program(case: Any, own: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Of the default run and small ones: of the words only the device counts."""
    from program import measure_program, program_text

    device = [word for word in own.words if word.startswith("device=")]
    found = measure_program(device, own.rounds, progress)
    return found, program_text(found)


MEASURE: dict[str, Callable[..., tuple[Any, str]]] = {
    "steps": steps, "stages": stages, "activations": activations, "growth": growth,
    "memory": memory, "program": program,
}  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 1 where memory runs out, 2 where the command line is refused."""
    own = arguments(given)
    for key, value in (("KINETO_LOG_LEVEL", "99"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(key, value)  # the profiler's libraries talk to the screen
    import torch
    from cases import case_of

    from sat.acceleration.device import settle_on
    from sat.errors import Fault, Refused, is_out_of_memory

    if own.threads:
        torch.set_num_threads(own.threads)
        import sat.acceleration.auto

        sat.acceleration.auto.THREADS = own.threads  # what `auto` gives a run that is not small
    try:
        case = case_of(own.words)
        settle_on(case.device)
        own.out.mkdir(parents=True, exist_ok=True)
        found, texts = {"about": about(case, own)}, [headline(about(case, own))]
        print(texts[0], flush=True)
        for part in own.parts:
            found[part], text = MEASURE[part](case, own)
            texts.append(text)
            progress("")
            print(f"\n{text}", flush=True)
            (own.out / "benchmark.json").write_text(json.dumps(found, indent=1) + "\n")
            (own.out / "benchmark.md").write_text("\n\n".join(texts) + "\n")
    except (Refused, Fault, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"out of memory at batch {case.batch}; --batch takes fewer images", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
