"""Models from specs, and weights from files: nothing but tensors is ever unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sat import checkpoint
from sat.models import Classifier, assemble
from sat.record import weights_file


def shape_of(data: Any) -> dict[str, Any]:
    """What a network must know of its dataset; kept in every checkpoint."""
    return {
        "channels": data.channels,
        "classes": len(data.classes),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def build_model(spec: Any, shape: Mapping[str, Any], device: torch.device) -> Classifier:
    """The spec's network for such images, seeded, with its activations swapped and proved.

    Raises ValueError, beginning with the key, for what can't be built.
    """
    torch.manual_seed(spec.seed)
    size = shape["image_size"]
    backbone = spec.model(shape["channels"], shape["classes"], size)
    mean, std = shape["mean"], shape["std"]
    if getattr(spec.model, "pretrained", False):  # the weights expect their own normalisation
        cfg = backbone.pretrained_cfg
        if len(cfg["mean"]) == shape["channels"]:
            mean, std = cfg["mean"], cfg["std"]
    model = assemble(backbone, spec.activation, mean, std, (shape["channels"], size, size))
    if spec.weights:
        load_weights(model, spec.weights)
    return model.to(device)


def load_weights(model: Classifier, place: str) -> None:
    """Puts the weights of a run directory or a file of this program into `model`.

    Raises ValueError, beginning with the key, naming what does not fit.
    """
    path = weights_file(place)
    try:
        state = checkpoint.read(path)
    except OSError as error:
        raise ValueError(f"weights={place}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"weights={place}: {error}") from None
    weights = state.get("average") or state.get("model") or state
    mine = model.state_dict()
    missing = sorted(mine.keys() - weights.keys())
    surplus = sorted(weights.keys() - mine.keys())
    shaped = [k for k in mine.keys() & weights.keys() if mine[k].shape != weights[k].shape]
    for what, names in (("lacks", missing), ("has no place for", surplus), ("misfits in", shaped)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            listed = ", ".join(map(str, names[:3])) + more
            raise ValueError(f"weights={place}: {what} {listed}; the run's model must be the same")
    model.load_state_dict(weights)


def load(run_directory: str | Path, which: str = "best", device: str = "cpu") -> Classifier:
    """The trained model of a run, in eval mode and float32, for images [B, C, H, W] in [0, 1].

    `which` is `best` or `last`. Raises ValueError where the directory holds no such checkpoint.
    """
    import yaml

    from sat.config import check

    directory = Path(run_directory)
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        state = checkpoint.read(directory / "checkpoints" / f"{which}.pt")
    except OSError as error:
        raise ValueError(f"{directory}: no run with a {which!r} checkpoint ({error})") from None
    config["model"] |= {"weights": None}
    if "pretrained" in config["model"]:
        config["model"]["pretrained"] = False
    with torch.random.fork_rng():  # the caller's random numbers are the caller's
        model = build_model(check(config), state["facts"]["shape"], torch.device(device))
    model.load_state_dict(state.get("average") or state["model"])
    return model.eval()
