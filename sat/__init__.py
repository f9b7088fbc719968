"""Smooth Adversarial Training: `python -m sat.run` or `sat.train` trains, `sat.load` gives the
model, and `sat.evaluate` measures any network."""

import sys
from importlib.util import find_spec

if sys.platform == "win32":  # has no flock, no fork, and no signal that asks a run to save itself
    sys.exit("! sat runs on Linux and macOS; on Windows use WSL 2, which is a Linux")
if find_spec("omegaconf") is None:  # which tables and states need, too
    sys.exit("! sat: its packages are not installed here; source .venv/bin/activate, or make setup")

__version__ = "0.1.0"


def train(*words, model=None, data=None):
    """Trains by the words of the command line: see `sat.python.train` for what it takes and gives.

    ```python
    run = sat.train("activation=gelu", "attack.steps=2")
    print(run)
    logits = run.model(images)
    ```
    """
    from sat.python import train

    return train(words, model, data)


def load(run_directory, which="best", device="cpu", model=None):
    """The trained model of a run directory, ready for images [B, C, H, W] in [0, 1]; `model` is the
    module that a run of `sat.train(model=...)` began with."""
    from sat.models.weights import load

    return load(run_directory, which, device, model)


def evaluate(model, images, labels, eps=8, norm="linf", attack="strong", **options):
    """How robust any network is: see `sat.evaluation.robustness.evaluate` for what it takes.

    ```python
    print(sat.evaluate(model, images, labels, eps=8))
    ```
    """
    from sat.evaluation.robustness import evaluate

    return evaluate(model, images, labels, eps, norm, attack, **options)
