"""What tells rows of a table apart, and what tables: parts of the configs of their runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runs import Measured

from sat.identity import SECTIONS as ALL
from sat.identity import data_name, trained_by

# Activations as the literature writes them.
NAMES = {"relu": "ReLU", "softplus": "Softplus", "parametric_softplus": "Parametric Softplus",
         "smoothrelu": "SmoothReLU", "silu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)",
         "elu": "ELU", "celu": "CELU", "mish": "Mish", "leaky_relu": "LeakyReLU",
         "prelu": "PReLU", "pssilu": "PSSiLU"}  # fmt: skip
SECTIONS = [name for name in ALL if name not in ("evaluation", "record")]


def keys_of(config: Mapping[str, Any], rows: Sequence[str]) -> dict[str, Any]:
    """The value of each key: a group's option by its name; None for a key that is not there."""
    found = {}
    for key in rows:
        value: Any = config
        if "." not in key:
            value = config["choices"].get(key)
        else:
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        simple = value is None or isinstance(value, str | int | float)
        found[key] = value if simple else json.dumps(value)
    return found


def label_of(keys: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    """`elu alpha=1.2`: options by their names, keys with their values; without absent ones."""
    parts = [text_of(key, value, labels) for key, value in keys.items()]
    return " ".join(filter(None, parts)) or "-"


def text_of(key: str, value: Any, labels: Mapping[str, Any]) -> str:
    """A key's value for people: `silu`, `alpha=1.2`, or as `labels` has it: by a template with {}
    in the value's place, or a text of its own for some values."""
    label = labels.get(key)
    if isinstance(label, Mapping) and value in label:
        return str(label[value])
    if value is None:
        return ""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    shown = NAMES.get(shown, shown) if key == "activation" else shown
    if isinstance(label, str):
        return label.replace("{}", shown)
    return f"{key.rsplit('.', 1)[1]}={shown}" if "." in key else shown


def split(config: Mapping[str, Any], rows: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that decided the trained weights but the seed, as dotted keys: that of the table, and
    that of the row, to which a group among `rows` belongs with all its arguments."""
    table: dict[str, Any] = {}
    row: dict[str, Any] = {}
    for section, values in trained_by(config).items():
        for key, value in flat(section, values).items():
            mine = section in rows or any(key == r or key.startswith(f"{r}.") for r in rows)
            (row if mine else table)[key] = value
    return table, row


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(f"{prefix}.{key}", value) if nested else {f"{prefix}.{key}": value}
    return found


def setting_of(run: Measured, rows: Sequence[str]) -> str:
    """What all runs of a table share, as JSON."""
    table, _ = split(run.config, rows)
    images = {} if own_images(rows) else {"test images": run.images or "unknown"}
    return json.dumps(table | images, sort_keys=True)


def own_images(rows: Sequence[str]) -> bool:
    """Whether rows differ in the images themselves, in their size for instance; then a digest of
    them belongs to the row."""
    return any(key.split(".")[0] == "dataset" for key in rows)


def unlike(run: Measured, rows: Sequence[str]) -> tuple[str, ...]:
    """What all runs of a row share, beside the table's."""
    _, row = split(run.config, rows)
    keys = keys_of(run.config, rows)
    images = (run.images or "unknown",) if own_images(rows) else ()
    return json.dumps(row, sort_keys=True), json.dumps(keys, sort_keys=True), *images


def apart(setting: str, others: Sequence[str]) -> dict[str, Any]:
    """The keys in which a setting differs from any of the others, with its values."""
    mine = json.loads(setting)
    found = {}
    for other in map(json.loads, others):
        keys = [key for key in {*mine, *other} if mine.get(key) != other.get(key)]
        found |= {key: mine.get(key) for key in keys}
    return dict(sorted(found.items()))


def told(
    runs: Sequence[Measured], attack: str, rows: Sequence[str], differing: Mapping[str, Any]
) -> str:
    """A table's heading: `digits, eps 38/255, resnet10, 40 epochs`, and what else sets it apart."""
    run = runs[0]
    config, choices = run.config, run.config["choices"]
    own = data_name(config["dataset"]) or choices.get("dataset")
    parts = {"dataset.name": str(own or run.result["dataset"]["name"])}
    if isinstance(images := run.result["dataset"].get("train"), int):
        parts["dataset.limit"] = f"{images:,} training images"
    sizes = {
        f"{s['eps']:g}/255 {'L2' if s.get('norm') == 'l2' else 'L-inf'}"
        for s in (
            e["settings"] for r in runs for (_, name), e in r.entries.items() if name == attack
        )
        if "eps" in s
    }
    if len(sizes) == 1:
        parts["evaluation.eps"] = f"eps {sizes.pop()}"
    model, training = config["model"], config["attack"]
    network = model.get("name") or choices.get("model", "model")
    told_model = [key for key in ("depth", "variant") if model.get(key)]
    network += "".join(str(model[key]) for key in told_model if f"model.{key}" not in rows)
    if model.get("width", 1) != 1 and "model.width" not in rows:
        network += f" of width {model['width']:g}"
    parts["model.depth"] = "" if "model" in rows else str(network)
    steps = "" if "attack.steps" in rows else training.get("steps", "")
    parts["attack.steps"] = "" if "attack" in rows else f"trained on {choices.get('attack')}{steps}"
    parts["activation._target_"] = "" if "activation" in rows else choices.get("activation", "")
    count = config["schedule"]["epochs"]
    epochs = f"{count:g} epoch{'s' * (count != 1)}"
    parts["schedule.epochs"] = "" if "schedule.epochs" in rows else epochs
    shown = {key for key, text in parts.items() if text}
    more = {key: value for key, value in differing.items() if key not in shown}
    return ", ".join([*filter(None, parts.values()), *(f"{k} {v}" for k, v in more.items())])
