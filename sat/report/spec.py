"""What an experiment's file says of its report: the `report` node, checked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat.config import CONF, nearest
from sat.errors import Refused
from sat.rundir.untrusted import misfit, read_yaml

KINDS = ("scatter", "dots", "lines", "epochs")
COLLAPSE = "collapse"
MEASURES = {  # the checkpoint whose accuracy counts, or how far the first is behind the second
    "robust": ("best",), "last robust": ("last",), "last behind best": ("last", "best"),
    "clean": ("best",), "last clean": ("last",), COLLAPSE: (),
}  # fmt: skip
EXTREMES = {"lowest": min, "highest": max}
TUNED = "tuned"  # stands for the value whose runs are the most robust on held-out images
OTHERS = "other_runs"  # stands for an experiment, of runs that were asked for under none
FILES = "weights_of_files"  # stands for one, of networks that no run trained
NODE = {  # see `misfit`
    "title?": str,
    "question?": str,
    "rows": [str],
    "labels?": {"*": (str, {"*": str})},
    "reference?": dict,
    "figures?": [{"kind": str, "x?": str, "series?": [str]}],
    "published?": {"setting?": str, "source?": str,
                   "rows": [{"clean?": int | float, "robust?": int | float}]},
    "claims?": [{"text": str, "measure": str, "better": dict, "than": dict,
                 "within?": int | float, "equal?": str}],
    "also?": [str],
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """An experiment's name and its `report` node."""

    name: str
    rows: Sequence[str]
    varying: Sequence[str] | None = None  # keys that differ between rows; None: just `rows`
    title: str = ""
    question: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[Mapping[str, Any]] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    claims: Sequence[Mapping[str, Any]] = ()
    also: Sequence[str] = ()  # experiments whose runs are shown, too

    @property
    def is_asked_for(self) -> bool:
        """Whether its runs were begun by its name."""
        return self.name not in (OTHERS, FILES)


def load(name: str, own: Path | None = None) -> Experiment | None:
    """None where its file has no `report`. Raises Refused where there is none that can be read, in
    our folder of options or in the user's `own`."""
    if name == FILES:
        return Experiment(FILES, ["evaluate"], ["evaluate", "hash"], "Weights of files")
    folders = [folder / "experiment" for folder in (CONF, own) if folder]
    files = {path.stem: path for folder in folders[::-1] for path in folder.glob("*.yaml")}
    if name not in files:
        said = f"experiment {name}: has no file in {' or '.join(map(str, folders))}"
        raise Refused(f"{said}; name the folder that has experiment/{name}.yaml: --config-dir DIR")
    try:
        whole = read_yaml(files[name], aliases=True)
        if (node := whole.get("report")) is None:
            return None
        check(node)
    except Refused as error:
        raise Refused(f"experiment {name}: {error}") from None
    return Experiment(name, **{"title": name, **node})


def check(node: Any) -> None:
    """Raises Refused, naming the key, for a `report` node that can't be understood."""
    if wrong := misfit(node, NODE, "report"):
        raise Refused(wrong)
    if not (rows := node["rows"]):
        raise Refused("report.rows: must name at least one group or key that tells rows apart")
    names: list[tuple[str, Any, Collection[str]]]
    names = [("report", node, [key.rstrip("?") for key in NODE])]
    names += [(f"report.{key}", node.get(key, ()), rows) for key in ("reference", "labels")]
    for k, figure in enumerate(node.get("figures", ())):
        names.append((f"report.figures[{k}].kind", [figure["kind"]], KINDS))
    for k, row in enumerate(node.get("published", {}).get("rows", ())):
        names.append((f"report.published.rows[{k}]", row, [*rows, "clean", "robust"]))
    for k, claim in enumerate(node.get("claims", ())):
        where = f"report.claims[{k}]"
        names += [(f"{where}.{side}", claim[side], rows) for side in ("better", "than")]
        names.append((f"{where}.measure", [claim["measure"]], MEASURES))
        names.append((f"{where}.equal", [claim.get("equal", "gradients")], ["gradients"]))
        if claim["measure"] == COLLAPSE and "within" in claim:
            raise Refused(f"{where}.within: counts of collapses are compared, not bounded")
    for where, name, allowed in [(at, n, allowed) for at, given, allowed in names for n in given]:
        if name not in allowed:
            raise Refused(f"{where}={name}: unknown; {nearest(str(name), list(allowed))}")
