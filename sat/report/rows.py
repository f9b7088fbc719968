"""What tells rows of a table apart, and what tables: parts of the configs of their runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sat.identity import SECTIONS as ALL
from sat.identity import data_name
from sat.report.runs import Measured
from sat.report.spec import Experiment, is_number

# Activations as the literature writes them.
NAMES = {"relu": "ReLU", "softplus": "Softplus", "parametric_softplus": "Parametric Softplus",
         "smoothrelu": "SmoothReLU", "silu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)",
         "elu": "ELU", "celu": "CELU", "mish": "Mish", "leaky_relu": "LeakyReLU",
         "prelu": "PReLU", "pssilu": "PSSiLU"}  # fmt: skip
SECTIONS = [name for name in ALL if name not in ("evaluation", "record")]
OTHERS = "other_runs"  # stands for an experiment, of runs that were asked for under none


NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}


def keys_of(config: Mapping[str, Any], rows: Sequence[str]) -> dict[str, Any]:
    """The value of each key: a group's option by its name; None for a key that is not there."""
    found = {}
    for key in rows:
        value: Any = config
        if "." not in key:
            value = config["choices"].get(key, config.get(key))
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


def split(run: Measured, rows: Sequence[str]) -> tuple[str, str]:
    """What all runs of a table share, and what those of a row do, as JSON: all that decided the
    trained weights but the seed, by dotted keys. A group among `rows` belongs to the row with all
    its arguments; so does a digest of the test images where rows differ in their data."""
    table: dict[str, Any] = {}
    row: dict[str, Any] = {"rows": keys_of(run.config, rows)}
    for key, value in run.decided.items():
        section = key.split(".")[0]
        mine = section in rows or any(key == r or key.startswith(f"{r}.") for r in rows)
        (row if mine else table)[key] = value
    own_images = any(key.split(".")[0] == "dataset" for key in rows)
    (row if own_images else table)["test images"] = run.images
    return json.dumps(table, sort_keys=True), json.dumps(row, sort_keys=True)


def apart(setting: str, others: Sequence[str]) -> dict[str, Any]:
    """The keys in which a setting differs from any of the others, with its values; None for one
    that is at its default."""
    mine = json.loads(setting)
    keys = {k for o in map(json.loads, others) for k in {*mine, *o} if mine.get(k) != o.get(k)}
    return {key: mine.get(key) for key in sorted(keys)}


def others(runs: Sequence[Measured]) -> Experiment:
    """Stands for the experiment of runs on one data set that have none: rows differ in whatever
    is not the same in all of them. A key that varies just as another does is not told."""
    if runs[0].config.get("evaluate") is not None:
        return Experiment(OTHERS, {"title": "Weights of files", "rows": ["evaluate"]}, {})
    choices = [run.config["choices"] for run in runs]
    groups = [name for name in SECTIONS if len({str(c.get(name)) for c in choices}) > 1]
    groups = [name for name in groups if name not in ("dataset", "schedule", "validation")]
    keys = list(dict.fromkeys(key for run in runs for key in run.decided))
    configs = [keys_of(run.config, keys) for run in runs]
    rows, told, labels = list(groups), set(), {}
    for key in keys:
        of_option: dict[str, set[str]] = {}
        for choice, config in zip(choices, configs, strict=True):
            option = str(choice.get(key.split(".")[0]))
            of_option.setdefault(option, set()).add(json.dumps(config.get(key)))
        if max(map(len, of_option.values())) > 1 and not key.endswith("_target_"):
            rows.append(key)
            values = [json.dumps(config.get(key)) for config in configs]
            if (pattern := tuple(map(values.index, values))) in told:
                labels[key] = ""
            told.add(pattern)
    shown = [key for key in rows if key not in labels]
    numbers = [key for key in shown if sum(is_number(c.get(key)) for c in configs) > 1]
    figures = [{"kind": "dots"}, {"kind": "scatter"}] * (len(runs) > 1)
    figures += [{"kind": "lines", "x": k, "series": [s for s in shown if s != k]} for k in numbers]
    spec = {"title": "Other runs", "rows": rows or ["activation"], "labels": labels}
    return Experiment(OTHERS, {**spec, "figures": figures}, {})


def heading(
    runs: Sequence[Measured], attack: str, rows: Sequence[str], differing: Mapping[str, Any]
) -> str:
    """A table's heading: `digits, eps 38/255, resnet10, 40 epochs`, and what else sets it apart."""
    config, result, choices = runs[0].config, runs[0].result, runs[0].config["choices"]
    parts = {"dataset.name": set_of(runs[0])}
    if isinstance(images := result.dataset.get("train"), int):
        parts["dataset.limit"] = f"{images:,} training images"
    settings = [e["settings"] for run in runs for (_, n), e in run.entries.items() if n == attack]
    sizes = {
        f"{given['eps']:g}/255 {NORMS[given.get('norm') or 'linf']}"
        for given in settings if "eps" in given
    }  # fmt: skip
    if len(sizes) == 1:
        parts["evaluation.eps"] = f"eps {sizes.pop()}"
    if config.get("evaluate") is None:
        count = config["schedule"]["epochs"]
        steps = "" if "attack.steps" in rows else config["attack"].get("steps", "")
        parts |= {
            "model.depth": network(config, rows),
            "attack.steps": f"trained on {choices.get('attack')}{steps}" * ("attack" not in rows),
            "activation._target_": choices.get("activation", "") * ("activation" not in rows),
            "schedule.epochs": f"{count:g} epoch{'s' * (count != 1)}"
            * ("schedule.epochs" not in rows),
        }
    shown = {key for key, text in parts.items() if text}
    usual = keys_of(config, [key for key in differing if "." in key])
    more = [
        f"{key} {usual.get(key) if value is None else value}"
        for key, value in differing.items()
        if key not in shown
    ]
    return ", ".join([*filter(None, parts.values()), *more])


def network(config: Mapping[str, Any], rows: Sequence[str]) -> str:
    """`resnet10 of width 0.25`, but for what rows differ in."""
    if "model" in rows:
        return ""
    model = config["model"]
    name = str(model.get("name") or config["choices"].get("model", "model"))
    sizes = [key for key in ("depth", "variant") if model.get(key) and f"model.{key}" not in rows]
    name += "".join(str(model[key]) for key in sizes)
    if model.get("width", 1) != 1 and "model.width" not in rows:
        name += f" of width {model['width']:g}"
    return name


def set_of(run: Measured) -> str:
    """The data set as the run's command names it: a subset is an option of its own."""
    own = data_name(run.config["dataset"])
    own = own or run.config["choices"].get("dataset") or run.result.dataset["name"]
    return Path(str(own)).name
