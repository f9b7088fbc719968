"""A run as a model card in RobustBench's form: `sat-export outputs/RUN --card`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat.errors import Refused
from sat.identity import SECTIONS
from sat.rundir.result import BEST, RunResult
from sat.rundir.untrusted import read_sections

NORMS = ("linf", "l2")
# Images that a card's numbers are of.
IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_TOLD = ("link", "name", "authors", "venue", "reported")  # what no run knows


def card_of(run_directory: str | Path, which: str = BEST) -> dict[str, Any]:
    """The card of a run's checkpoint, as `model_info/<data set>/<threat>/<model>.json` has it:
    accuracies are percent, written out; what no run knows is None.

    Raises Refused where the run lacks what a card is of: AutoAttack itself, in the run's norm, on
    enough test images of one of its data sets.
    """
    directory = Path(run_directory)
    result = RunResult.read(directory)
    if result is None:
        raise Refused(f"{directory}: holds no result.json, so it is no run that has ended")
    config = read_sections(directory / "config.yaml", [*SECTIONS, "choices"])
    dataset = config["choices"].get("dataset", "").removesuffix("_subset")
    if dataset not in IMAGES:
        raise Refused(f"{directory}: is of {dataset}; RobustBench is of {', '.join(IMAGES)}")
    found, norm = result.part(which).accuracies, config["dataset"]["norm"]
    if norm not in NORMS:
        raise Refused(f"{directory}: is of {norm}; RobustBench is of {', '.join(NORMS)}")
    own = [each for each in found.values() if each.is_autoattack() and each.norm == norm]
    entry = max(own, key=lambda each: each.images, default=None)
    if entry is None or min(entry.images, found["clean"].images) < IMAGES[dataset]:
        raise Refused(
            f"{directory}: a card has the number of AutoAttack's standard version in {norm} on"
            f" {IMAGES[dataset]:,} test images; python -m sat.run evaluate={directory}"
            " evaluation=autoattack measures it"
        )
    return {
        **dict.fromkeys(_TOLD),
        "additional_data": bool(config["dataset"].get("extra")),
        "number_forward_passes": 1,
        "dataset": dataset,
        "architecture": _architecture(config["model"], config["choices"].get("model", "")),
        "eps": f"{entry.eps:g}/255" if norm == "linf" else f"{(entry.eps or 0) / 255:g}",
        "clean_acc": f"{100 * found['clean'].accuracy:.2f}",
        "autoattack_acc": f"{100 * entry.accuracy:.2f}",
    }


_FAMILIES = {"resnet": "ResNet", "preact_resnet": "PreActResNet", "wide_resnet": "WideResNet",
             "resnet_cifar": "ResNet", "efficientnet": "EfficientNet"}  # fmt: skip


def _architecture(model: Mapping[str, Any], option: str) -> str:
    """`PreActResNet-18`, `WideResNet-28-10`; a width of 1 is not told."""
    sizes = [model.get("depth") or model.get("variant"), model.get("width")]
    parts = [model.get("name") or _FAMILIES.get(option, option)]
    parts += [f"{size:g}" if isinstance(size, float) else str(size) for size in sizes
              if size not in (None, 1.0)]  # fmt: skip
    return "-".join(parts)
