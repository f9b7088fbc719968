"""A run's model for whoever has timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

The folder holds the backbone, whose images are normalised by the `mean` and `std` of its
`pretrained_cfg`. What timm can build by itself needs nothing of this package. For anything else the
folder names the architecture `sat`, which importing this module registers with timm, and a recipe:
the run's own model, activation and shape.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, create_model, register_model
from torch import nn

from sat import config
from sat.activations.swap import swap_activations
from sat.identity import START
from sat.models import Classifier
from sat.models.weights import load, read_run
from sat.rundir.result import RunResult

WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Activations that timm builds from a name, with these arguments.
_NAMED = {
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01}),
    "prelu": ("PReLU", {"init": 0.25}),
    "silu": ("SiLU", {}),
    "gelu": ("GELU", {"approximate": "none"}),
    "gelu_tanh": ("GELU", {"approximate": "tanh"}),
    "mish": ("Mish", {}),
    "elu": ("ELU", {"alpha": 1.0}),
    "celu": ("CELU", {"alpha": 1.0}),
}


def export(run_directory: str | Path, folder: str | Path, which: str = "best") -> Path:
    """Writes the run's `best` or `last` weights (averaged where it averages) and their description
    to `folder`, and returns it. What is written was loaded by timm and gave the run's logits.

    Raises ValueError, in one line, for no run, no such checkpoint, a folder that can't be written
    or that holds another model, and logits that differ.
    """
    folder, model = Path(folder), load(run_directory, which)
    recipe, metadata = _described(Path(run_directory), which, model)
    _refuse_another(folder, metadata)
    tensors = {key: t.contiguous().clone() for key, t in model.backbone.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
            trial = Path(place)
            save_file(tensors, trial / WEIGHTS, metadata)
            for described in _descriptions(recipe, model):
                (trial / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
                if _gives_the_logits_of(model, trial, recipe["shape"]):
                    break
            else:
                raise ValueError(f"{run_directory}: timm gives other logits; nothing was written")
            for name in (CONFIG, WEIGHTS):
                os.replace(trial / name, folder / name)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{folder}: can't be written ({reason}); name another folder") from None
    return folder


@register_model
def sat(pretrained: bool = False, **given: Any) -> nn.Module:
    """The architecture `sat` of timm: any network of this package, from an export's `recipe`."""
    return build_model_with_cfg(_rebuilt, "sat", pretrained, **given)


def _rebuilt(recipe: Mapping[str, Any], num_classes: int, in_chans: int) -> nn.Module:
    """The recipe's backbone with its activations; no class from outside this package is used."""
    family = config.build(recipe["model"], "model").part
    activation = config.build(recipe["activation"], "activation", partial_=True).part
    net = family(in_chans, num_classes, recipe["shape"]["image_size"])
    swap_activations(net, activation)
    return net


def _described(run: Path, which: str, model: Classifier) -> tuple[dict[str, Any], dict[str, str]]:
    """What rebuilds the network, and what the file of weights says about itself."""
    plain, state = read_run(run, which)
    made = config.check(plain).config
    network = {key: value for key, value in made["model"].items() if key not in START}
    shape = state["facts"]["shape"]
    scale = {key: getattr(model, key).flatten().tolist() for key in ("mean", "std")}
    recipe = {"model": network, "activation": made["activation"], "shape": {**shape, **scale}}
    result = RunResult.read(run)
    found = result.part(which).accuracies if result else {}
    accuracies = {name: entry.accuracy for name, entry in found.items()}
    return recipe, {
        "format": "pt",  # asked for by transformers
        "run": result.name if result else run.resolve().name,
        "hash": state["facts"]["hash"],
        "checkpoint": which,
        "recipe": json.dumps(recipe),
        "normalisation": json.dumps(scale),
        "accuracies": json.dumps(accuracies),
    }


def _refuse_another(folder: Path, metadata: Mapping[str, str]) -> None:
    """An export is written over by one of the same run and checkpoint alone."""
    if not any((folder / name).exists() for name in (WEIGHTS, CONFIG)):
        return
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            held = file.metadata() or {}
    except Exception:  # damaged, or none: in any case not ours
        held = {}
    if any(held.get(key) != metadata[key] for key in ("run", "hash", "checkpoint")):
        raise ValueError(f"{folder}: holds another model, which stays; name another folder")


def _descriptions(recipe: Mapping[str, Any], model: Classifier) -> Iterator[dict[str, Any]]:
    """`config.json` for timm alone where it may do, then for the architecture `sat`.

    Whether timm alone does is left to the proof: a stem made small, or an activation that timm
    doesn't hand on to every place, gives other logits.
    """
    shape, net = recipe["shape"], model.backbone
    known = getattr(net, "pretrained_cfg", None) or {}
    first = next((n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)), None)
    last = next((n for n, m in net.named_modules() if m is net.get_classifier()), None)
    described = {
        "num_classes": shape["classes"],
        "num_features": net.num_features,
        "pretrained_cfg": {
            "input_size": [shape["channels"], shape["image_size"], shape["image_size"]],
            "fixed_input_size": known.get("fixed_input_size", False),
            "mean": shape["mean"],
            "std": shape["std"],
            "crop_pct": 1.0,
            "num_classes": shape["classes"],
            "first_conv": known.get("first_conv") or first,  # for other channels and classes
            "classifier": known.get("classifier") or last,
        },
    }
    kind = {key: value for key, value in recipe["activation"].items() if key != "_target_"}
    pair = (recipe["activation"]["_target_"].rpartition(".")[2], kind)
    if pair[0] == "SurrogateReLU":  # what is trained with it is a ReLU network
        pair = ("ReLU", {})
    name = next((name for name, made in _NAMED.items() if made == pair), None)
    if recipe["model"]["_target_"].rpartition(".")[2] == "Timm" and (name or pair[0] == "Keep"):
        architecture = recipe["model"]["name"].partition(".")[0]
        given = {"act_layer": name} if name else {}
        yield {"architecture": architecture, "model_args": given, **described}
    yield {"architecture": "sat", "model_args": {"recipe": recipe}, **described}


def _gives_the_logits_of(model: Classifier, folder: Path, shape: Mapping[str, Any]) -> bool:
    """Whether timm builds this very network from the folder: eight random images tell."""
    draw = torch.Generator().manual_seed(0)
    size = shape["image_size"]
    images = torch.rand(8, shape["channels"], size, size, generator=draw)
    try:
        with torch.random.fork_rng(devices=[]):
            net = create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (KeyError, RuntimeError, TypeError):  # no such argument or name; other weights
        return False
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        ours, theirs = model(images), net((images - mean) / std)
    return torch.allclose(theirs, ours, rtol=1e-5, atol=1e-5 * ours.abs().max().item())


def how_to_load(folder: Path) -> str:
    """The lines of Python that give the model, ready for images in [0, 1]."""
    needs = json.loads((folder / CONFIG).read_text())["architecture"] == "sat"
    lines = ["import timm, torch"]
    lines += ["import sat.models.export  # registers `sat` with timm"] if needs else []
    return "\n".join([
        *lines,
        f'net = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
        'mean, std = (torch.tensor(net.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))',
        "logits = net((images - mean) / std)  # images [B, C, H, W] in [0, 1]",
    ])  # fmt: skip
