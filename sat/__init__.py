"""Smooth Adversarial Training: `python -m sat.run` or `sat.train` trains, `sat.load` gives the
model, and `sat.evaluate` measures any network."""

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from sat.attacks import Attack
    from sat.evaluation.robustness import Robustness
    from sat.models import Classifier
    from sat.python import TrainedRun


def _refuse(text: str) -> NoReturn:
    """Raises ImportError, since who imports this may do without; a command of this package, which
    comes no further than here, ends with the line and exit code 2."""
    scripts = Path(__file__).resolve().parents[1] / "scripts"
    command = re.search(r"(^|[\\/])sat(-[a-z]+)?(\.exe)?$", sys.argv[0]) is not None
    command = command or Path(sys.argv[0]).resolve().parent == scripts
    if sys.argv[0] == "-m":  # Python looks for the module, which may be another package's
        command = any(word.startswith("sat.") for word in sys.orig_argv)
    if not command:
        raise ImportError(text)
    print(f"! {text}", file=sys.stderr)
    sys.exit(2)


if sys.platform == "win32":  # has no flock, no fork, and no signal that asks a run to save itself
    _refuse("sat runs on Linux and macOS; on Windows use WSL 2, which is a Linux")
if find_spec("omegaconf") is None:  # which tables and states need, too
    _refuse(
        "sat: its packages are not installed here; activate the environment that has them"
        " (source .venv/bin/activate), or install them (make setup; pip install of a wheel)"
    )

__version__ = "0.1.0"


def train(
    *words: str, model: "nn.Module | None" = None, data: Any = None, **others: Any
) -> "TrainedRun":
    """Trains by the words of the command line: see `sat.python.train` for what it takes and gives.

    ```python
    run = sat.train("activation=gelu", "attack.steps=2")
    print(run)
    logits = run.model(images)
    ```
    """
    from sat.python import train

    if others:
        texts = ", ".join(f'"{key}={value}"' for key, value in others.items())
        raise TypeError(f"sat.train: write keys as text: sat.train({texts})")
    return train(words, model, data)


def load(
    run_directory: str | Path, which: str = "best", device: str = "cpu", model: Any = None
) -> "Classifier":
    """The trained model of a run directory, ready for images [B, C, H, W] in [0, 1]; `model` is the
    module that a run of `sat.train(model=...)` began with."""
    from sat.models.weights import load

    return load(run_directory, which, device, model)


def evaluate(
    model: "Callable[[Tensor], Tensor]",
    images: "Tensor",
    labels: "Tensor",
    eps: "float | str | Mapping[str, float | str]" = 8,
    norm: str = "linf",
    attack: "str | Attack" = "strong",
    **options: Any,
) -> "Robustness":
    """How robust any network is: see `sat.evaluation.robustness.evaluate` for what it takes.

    ```python
    print(sat.evaluate(model, images, labels, eps=8))
    ```
    """
    from sat.evaluation.robustness import evaluate

    return evaluate(model, images, labels, eps, norm, attack, **options)


def __getattr__(name: str) -> Any:
    """`sat.attacks`, which imports torch, when it is first asked for."""
    if name == "attacks":
        return import_module("sat.attacks")
    raise AttributeError(f"module 'sat' has no attribute {name!r}")
