"""What tells rows of a table apart, and what tables: parts of the configs of their runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sat.identity import NEUTRAL, data_name
from sat.report.runs import Measured, key_of
from sat.report.spec import FILES, OTHERS, Experiment, is_number

# Activations as the literature writes them, in the order of rows.
NAMES = {"relu": "ReLU", "parametric_softplus": "Parametric Softplus", "softplus": "Softplus",
         "smoothrelu": "SmoothReLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "elu": "ELU",
         "silu": "SiLU", "celu": "CELU", "mish": "Mish", "leaky_relu": "LeakyReLU",
         "prelu": "PReLU", "pssilu": "PSSiLU", "squareplus": "Squareplus", "smelu": "SmeLU",
         "bent_identity": "Bent identity", "rcr_af": "RCR-AF"}  # fmt: skip


def keys_of(config: Mapping[str, Any], rows: Iterable[str]) -> dict[str, Any]:
    """The value of each key: a group's option by its name; None for a key that is not there."""
    found = {}
    for key in rows:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if "." not in key:
            value = config["choices"].get(key, NEUTRAL.get(key, value))
        simple = value is None or isinstance(value, str | int | float)
        found[key] = value if simple else json.dumps(value)
    return found


def order(keys: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Where a row stands: by its numbers, its activation, its words."""
    places = {text: place for place, text in enumerate(NAMES)}
    return [
        (float(value), "") if is_number(value) else (places.get(value, len(NAMES)), str(value))
        for value in keys.values()
    ]


def label_of(keys: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    """`ELU alpha=1.2`: options by their names, keys with their values; without absent ones, and
    without a group at the option that adds nothing, but where nothing is left."""
    parts = [text_of(key, value, labels) for key, value in keys.items()]
    return " ".join(filter(None, parts)) or next((shown_as(*item) for item in keys.items()), "-")


def text_of(key: str, value: Any, labels: Mapping[str, Any]) -> str:
    """A key's value for people: `SiLU`, `alpha=1.2`, or as `labels` has it: by a template with {}
    in the value's place, or a text of its own for some values."""
    label = labels.get(key)
    if isinstance(label, Mapping) and value in label:
        return str(label[value])
    if value is None or (key in NEUTRAL and value == NEUTRAL[key]):
        return ""
    shown = shown_as(key, value)
    if isinstance(label, str):
        return label.replace("{}", shown)
    return f"{name_of(key)}={shown}" if "." in key else shown


def shown_as(key: str, value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
    return NAMES.get(shown, shown) if key == "activation" else shown


def name_of(key: str) -> str:
    """`alpha` of activation.alpha."""
    return key.rsplit(".", 1)[-1]


def split(run: Measured, experiment: Experiment) -> tuple[str, str]:
    """What all runs of a table share, and what those of a row do, as JSON: all that decided the
    trained weights but the seed, by dotted keys. A group among the rows belongs to the row with all
    its arguments; so does a digest of the test images where rows differ in their data."""
    table: dict[str, Any] = {}
    row: dict[str, Any] = {"rows": keys_of(run.config, experiment.rows)}
    varying = experiment.spec.get("varying", experiment.rows)
    for key, value in {**run.decided, "test images": run.images}.items():
        mine = any(f"{key}.".startswith(f"{part}.") for part in varying)
        data = key == "test images" and any(part.split(".")[0] == "dataset" for part in varying)
        (row if mine or data else table)[key] = value
    return json.dumps(table, sort_keys=True), json.dumps(row, sort_keys=True)


def apart(row: str, others: Iterable[str]) -> dict[str, Any]:
    """The keys in which one of `split` differs from any of the others, with its values; None for
    one that is at its default."""
    mine = json.loads(row)
    keys = {k for o in map(json.loads, others) for k in {*mine, *o} if mine.get(k) != o.get(k)}
    return {key: mine.get(key) for key in sorted(keys - {"rows"})}


def others(runs: Sequence[Measured]) -> Experiment:
    """Stands for the experiment of runs on one data set that have none: rows are told apart by
    whatever is not the same in all of them, what was typed first, but for a key that varies just
    as one before does."""
    if runs[0].config.get("evaluate") is not None:
        told = {"rows": ["evaluate"], "varying": ["evaluate", "hash"]}
        return Experiment(FILES, {"title": "Weights of files", **told})
    decided = {key for run in runs for key in run.decided}
    groups = {key.split(".")[0] for key in decided}
    typed = [key_of(word) for word in runs[0].result.overrides]
    keys = dict.fromkeys([*typed, *sorted(groups | decided)])
    rows: list[str] = []
    patterns: dict[tuple[int, ...], str] = {}
    with_another: dict[str, str] = {}
    for key in (k for k in keys if k in groups | decided and not k.endswith("_target_")):
        values = [json.dumps(keys_of(run.config, [key])[key]) for run in runs]
        options = [str(run.config["choices"].get(key.split(".")[0])) for run in runs]
        varies = len({*zip(options, values, strict=True)}) > len({*options})  # under one option
        pattern = tuple(map(values.index, values))
        if not any(pattern) or "." in key and not varies:
            continue
        if (other := patterns.setdefault(pattern, key)) != key:
            with_another[key] = other
        else:
            rows.append(key)
    rows = rows or ["activation"]
    configs = [keys_of(run.config, rows) for run in runs]
    numbers = [key for key in rows if len({c[key] for c in configs if is_number(c[key])}) > 1]
    figures: list[dict[str, Any]] = [{"kind": "dots"}, {"kind": "scatter"}, {"kind": "epochs"}]
    figures += [{"kind": "lines", "x": k, "series": [s for s in rows if s != k]} for k in numbers]
    spec = {
        "title": f"Runs by {', '.join(map(name_of, rows))}",
        "question": "; ".join(
            f"{key} varies as {other} does" for key, other in with_another.items()
        ),
        "rows": rows,
        "varying": [*rows, *with_another],
        "figures": figures,
    }
    return Experiment(OTHERS, spec)


def heading(setting: str) -> str:
    """What all runs of a table share, for people, group by group, without what is at its default:
    `attack pgd eps=38, model resnet depth=10, schedule digits epochs=40`."""
    groups: dict[str, list[str]] = {}
    for key, value in json.loads(setting).items():
        group, _, rest = key.partition(".")
        parts = groups.setdefault(group, [group])
        if rest == "_target_":
            parts.insert(1, str(value))
        elif not rest.endswith("_target_"):
            parts.append(f"{rest}={shown_as(key, value)}" if rest else str(value))
    return ", ".join(" ".join(parts) for parts in groups.values())


def set_of(run: Measured) -> str:
    """The data set as the run's command names it: a subset is an option of its own."""
    own = data_name(run.config["dataset"])
    own = own or run.config["choices"].get("dataset") or run.result.dataset["name"]
    return Path(str(own)).name
