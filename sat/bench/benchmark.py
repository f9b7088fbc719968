"""What a training step costs, beside the machine's limits and what people use today:

    sat-benchmark                               # ResNet-18 on CIFAR-10's sizes
    sat-benchmark model.depth=50 dataset=imagenet --steps 0,1 --compile --budget 10m

Words are those of `python -m sat.run`; images are random pixels, and nothing is
downloaded. Each row goes to the screen, and with all numbers (`benchmark.json`)
and a figure into the folder of --out, when it is measured, the most telling
first; what was stopped goes on with the same command. `torchattacks` is compared
where it is installed. `python scripts/benchmark.py` is the same.
"""

import logging
import os
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from inspect import getdoc
from pathlib import Path
from typing import Any

from sat.errors import Fault, Refused
from sat.loggers import screen
from sat.loggers.screen import refuse
from sat.loggers.usage import Parser, positive, seconds_of

PARTS = ("steps", "stages", "activations", "seeds", "methods")  # the most telling first


def steps(text: str) -> tuple[int, ...]:
    """`0,1,2` as distinct numbers in ascending order."""
    found = tuple(sorted({int(part) for part in text.split(",")}))
    if found[0] < 0:
        raise ArgumentTypeError(f"{text}: must be 0 or above")
    return found


def arguments(given: Sequence[str] | None = None) -> Namespace:
    parser = Parser("sat-benchmark", "sat-benchmark [key=value ...] [options]", __doc__)
    add = parser.add_argument
    add("words", nargs="*", help="what sat.run takes: model=..., activation=..., dataset=...")
    add("--steps", type=steps, default=(0, 1, 2, 3, 10), metavar="K,K", help="of PGD (0,1,2,3,10)")
    add("--batch", type=positive, help="images a step (the schedule's; CIFAR-10: 128)")
    add("--rounds", type=positive, default=7, help="how often each is timed (7)")
    add("--threads", type=positive, help="of a CPU (as many as torch takes)")
    add("--compile", action="store_true", help="times it compiled as well: a minute a network")
    add("--parts", default="steps,stages,activations", metavar="P,P", help=f"of {','.join(PARTS)}"
        " (the first three; seeds is for a GPU)")  # fmt: skip
    add("--budget", type=seconds_of, default=float("inf"), metavar="10m", help="then stop")
    add("--out", type=Path, default=Path("outputs/benchmark"), help="folder (outputs/benchmark)")
    own = parser.parse_intermixed_args(given)
    own.parts = own.parts.split(",")
    for part in own.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part}: is none of {', '.join(PARTS)}")
    own.words += [f"schedule.batch_size={own.batch}"] if own.batch else []
    own.until = time.monotonic() + own.budget
    own.compilations = (False, True)[: 1 + own.compile]
    return own


def about(case: Any, rounds: int) -> dict[str, Any]:
    """Machine, versions, command line and what is timed."""
    from sat.acceleration.processor import flags
    from sat.rundir.environment import environment

    found = environment(case.device) | {
        "command": " ".join(["python", *sys.argv]), "words": " ".join(case.words),
        "rounds": rounds, "batch": case.batch, "shape": "x".join(map(str, case.sizes.shape)),
        "multiply_adds": case.cost.multiply_adds, "parameters": case.cost.parameters,
    }  # fmt: skip
    if case.device.type == "cpu":
        # what a product's rate is by
        found["isa"] = " ".join(sorted(f for f in flags() if f.startswith(("avx", "amx"))))
        found["isa_limit"] = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return found


def measure(case: Any, own: Namespace) -> int:
    """The parts that were asked for, one after the other; the exit code."""
    from sat.bench.book import Book
    from sat.bench.parts import activations, methods, seeds, stages
    from sat.bench.steps import draw, steps
    from sat.bench.stopwatch import Stopwatch

    machine = about(case, own.rounds)
    book, watch = Book(own.out, machine, own.until), Stopwatch(case.device, own.rounds, own.until)
    many: Any = nullcontext()
    if own.compile:  # torch takes all networks of a class for one that changes, and gives up
        from torch._dynamo import config  # takes a second to import

        many = config.patch(recompile_limit=256, automatic_dynamic_shapes=False)
    with many:
        for part in (steps, stages, activations, seeds, methods):
            if part.__name__ in own.parts:
                book.measure(part.__name__, getdoc(part) or "", part(case, own, watch))
    if any("images/s" in row for row in book.found.get("steps", [])):
        title = f"{machine['device']}, torch {machine['torch']}; {machine['words']}"
        draw(book.found["steps"], title, own.out)
    return book.close()


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 1 where memory runs out, 2 where the command line is refused, 143 where the
    budget is used up and rows are left."""
    screen.set_up(logging.WARNING)
    own = arguments(given)
    screen.stage("loading torch and the network")
    import torch

    from sat.acceleration import auto
    from sat.acceleration.device import settle_on
    from sat.attacks import PGD
    from sat.bench.case import case_of
    from sat.errors import is_out_of_memory

    if own.threads:
        torch.set_num_threads(own.threads)
        auto.THREADS = own.threads  # what `auto` gives a run that is not small
    try:
        case = case_of(own.words)
        if not isinstance(case.spec.attack, PGD) or case.spec.attack.norm != "linf":
            raise Refused("attack: only PGD in the l-infinity norm is timed; --steps says how long")
        settle_on(case.device)
        return measure(case, own)
    except (Refused, Fault, OSError) as error:
        refuse(error)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        refuse(f"out of memory at batch {case.batch}; --batch takes fewer images")
        return 1
