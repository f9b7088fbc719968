"""What is to be measured on a GPU: plain command lines, in order of value."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PARTS = ("speed", "projection", "cifar10", "photographs", "overfitting")

# Networks whose step is timed: a benchmark begins anew when it was stopped, so that each of its
# parts is a line of its own, of a few minutes. PGD-10 of other loops takes seconds at 224 pixels.
NETWORKS = {
    "resnet18-b128": ("dataset=cifar10", "--batch", "128"),
    "resnet50-224": ("dataset=imagenet", "--batch", "256", "--rounds", "3"),
    "resnet18-b512": ("dataset=cifar10", "--batch", "512"),
    "efficientnet-b0-224": ("dataset=imagenet", "model=efficientnet", "--batch", "256",
                            "--rounds", "3"),
}  # fmt: skip
# What tells at once whether the program is as fast as it should be; the rest after the first seed.
FIRST = [(part, network) for part in ("steps", "stages") for network in [*NETWORKS][:2]]
LATER = [(part, network) for part in ("steps", "stages") for network in [*NETWORKS][2:]]
LATER += [("activations", network) for network in [*NETWORKS][:2]]
PROJECTED = "resnet50-224-steps"  # whose rate the projection takes

# A sweep each: the part it belongs to, its name, its words. The main table and its controls first.
SWEEPS = (
    ("cifar10", "activations-pgd1", ("experiment=activations",)),
    ("cifar10", "attack_steps", ("experiment=attack_steps",)),
    ("cifar10", "activations-pgd10", ("experiment=activations", "attack.steps=10")),
    ("photographs", "activations-pgd1", ("experiment=activations", "activation=relu,silu,gelu")),
    (
        "photographs",
        "attack_steps",
        ("experiment=attack_steps", "activation=relu,silu,gelu", "attack.steps=1,3"),
    ),
    ("cifar10", "gradient_quality", ("experiment=gradient_quality",)),
    ("overfitting", "longer_training", ("experiment=longer_training",)),
    ("cifar10", "elu_vs_celu", ("experiment=elu_vs_celu",)),
    ("cifar10", "depth", ("experiment=depth",)),
    ("cifar10", "width", ("experiment=width",)),
)
STRONG = ("evaluation=strong", "evaluation.limit=1000")
RATE, RATE_FP32 = "RATE", "RATE_FP32"  # in a line's words, until they are measured


@dataclass(frozen=True)
class Line:
    """A command line, of which `words` follow `python`."""

    name: str  # of its record and its log
    part: str
    words: tuple[str, ...]
    resumes: bool = True  # else it begins anew when it was stopped

    @property
    def command(self) -> str:
        return shlex.join(["python", *self.words])

    def measured(self, out: Path) -> "Line":
        """With the rates in place that it needs, as far as they are measured."""
        if RATE not in self.words or (found := rates(out)) is None:
            return self
        names = dict(zip((RATE, RATE_FP32), (f"{rate:.3g}" for rate in found), strict=True))
        return replace(self, words=tuple(names.get(word, word) for word in self.words))


@dataclass(frozen=True)
class Places:
    """What the lines name beside the study itself."""

    data: Path  # holds cifar-10-batches-py (downloaded on first use) and a folder of photographs
    out: Path
    jobs: int = 3  # runs on 32x32 images that share the GPU
    photographs: Path | None = None  # train/<class>/ and val/<class>/


def lines(places: Places, parts: Sequence[str], seeds: Sequence[int]) -> list[Line]:
    """The plan: the first times, every row with the first seed, the other times, every row with the
    next seed, ..."""
    found = [*speed(places.out, FIRST), projection()]
    for number, seed in enumerate(seeds):
        for part, name, words in SWEEPS:
            if part in parts:
                found += sweep(places, part, f"{name}-s{seed}", (*words, f"seed={seed}"))
        if number == 0:
            found += speed(places.out, LATER)
    return [line for line in found if line.part in parts]


def speed(out: Path, timed: Sequence[tuple[str, str]]) -> list[Line]:
    return [
        Line(
            f"speed-{network}-{part}",
            "speed",
            ("scripts/benchmark.py", *NETWORKS[network], "--compile", "--parts", part,
             "--out", str(out / "benchmark" / f"{network}-{part}")),
            resumes=False,
        )
        for part, network in timed
    ]  # fmt: skip


def projection() -> Line:
    """GPU hours of the paper's table on ImageNet, at the rate that was measured here."""
    words = ("scripts/forecast.py", "-m", "experiment=activations", "dataset=imagenet")
    rate = ("--tflops", RATE, "--tflops-fp32", RATE_FP32, "--gpus", "8")
    return Line("projection-imagenet", "projection", (*words, *rate))


def rates(out: Path) -> tuple[float, float] | None:
    """TFLOP/s of single-step training as fast as this program does it, and in float32, in which the
    evaluation computes; None before they are measured."""
    try:
        found = json.loads((out / "benchmark" / PROJECTED / "benchmark.json").read_text())["steps"]
    except (OSError, ValueError, KeyError):
        return None
    own = [row for row in found["rows"] if row["k"] == 1 and row["loop"].startswith("sat")]
    rate = lambda row: row["flop_per_second"]["median"] / 1e12  # noqa: E731
    exact = [row for row in own if found["choices"][row["loop"]]["precision"] == "fp32"]
    return max(map(rate, own)), max(map(rate, exact))


def sweep(places: Places, part: str, name: str, words: Sequence[str]) -> list[Line]:
    """Two lines: training, with PGD on all test images; then the strong evaluation of 1,000, which
    trains nothing. A checkpoint every two minutes: whoever is killed loses no more."""
    if part == "photographs":  # the paper's recipe, its 100 epochs too, of two seconds each
        data = ("dataset=imagefolder", f"dataset.root={places.photographs}",
                "dataset.image_size=128", "schedule=imagenet", "validation.every=5")  # fmt: skip
        pgd, sharing = "evaluation=pgd200", ()
    else:
        data, pgd = ("dataset=cifar10", f"dataset.root={places.data}"), "evaluation=pgd20"
        sharing = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={places.jobs}")
    words = ("-m", "sat.run", "-m", *(sharing if places.jobs > 1 else ()), *words, *data)
    kept = (f"record.root={places.out}", "record.checkpoint_minutes=2")
    return [
        Line(f"{part}-{name}", part, (*words, pgd, *kept)),
        Line(f"{part}-{name}-strong", part, (*words, *STRONG, *kept)),
    ]


def rehearsed(line: Line) -> Line:
    """The same line on few images, a few steps long, for a CPU; a speed is none of it."""
    words = line.words
    if line.part == "speed":
        smaller = [f"dataset.image_size={64 if 'dataset=imagenet' in words else 32}"]
        words = [word for word in words if word not in ("--compile", "--rounds", "3")]
        words += [*smaller, "--batch", "2", "--steps", "0,1", "--rounds", "1"]
    elif line.part != "projection":
        epochs = ("sizes.epochs='1,2'",) if line.part == "overfitting" else ("schedule.epochs=1",)
        attack = "evaluation.attacks.strong.attacks=[apgd-ce]"
        if "evaluation=strong" not in words:
            name = next(w for w in words if w.startswith("evaluation=")).split("=")[1]
            attack = f"evaluation.attacks.{name}.steps=2"
        words = (*words, "dataset.limit=48", "dataset.holdout=16", "model.width=0.25", *epochs,
                 "schedule.batch_size=16", "schedule.precision=fp32", "validation.attack.steps=1",
                 "evaluation.limit=8", "evaluation.masking_checks=0", attack)  # fmt: skip
    return replace(line, words=tuple(words))
