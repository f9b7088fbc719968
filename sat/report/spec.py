"""What an experiment's file says of its report: the `report` node, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sat.config import CONF, nearest
from sat.errors import Refused
from sat.report.runs import FAULTS, one_line, read_yaml

KINDS = ("scatter", "dots", "lines", "epochs")
MEASURES = ("robust", "clean", "last robust", "last clean")
PUBLISHED = ("clean", "robust")
EXTREMES = {"lowest": min, "highest": max}
NODE = {
    "title": str, "question": str, "rows": Sequence, "labels": Mapping, "reference": Mapping,
    "figures": Sequence, "published": Mapping, "claims": Sequence, "also": Sequence,
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """An experiment's name, its `report` node, and the values that its file sweeps a key over."""

    name: str
    spec: Mapping[str, Any]
    swept: Mapping[str, Sequence[str]]

    @property
    def also(self) -> Sequence[str]:
        """Other experiments whose runs have a row, too, where their setting is this one's."""
        return self.spec.get("also") or ()

    @property
    def rows(self) -> Sequence[str]:
        return self.spec["rows"]

    @property
    def printed(self) -> Sequence[Mapping[str, Any]]:
        """The rows of published numbers."""
        return (self.spec.get("published") or {}).get("rows", ())

    def order(self, keys: Mapping[str, Any]) -> list[tuple[int, float, str]]:
        """Where a row stands: as the file sweeps its values; others behind, by size or name."""
        places = []
        for key, value in keys.items():
            if is_number(value):
                places.append((0, float(value), ""))
                continue
            known, text = self._known(key), str(value)
            places.append((known.index(text) if text in known else len(known), 0.0, text))
        return places

    def _known(self, key: str) -> list[str]:
        """The values of a key in the order of the sweep, else in that of the published table."""
        swept = [text for text in self.swept.get(key, ()) if not text.startswith("$")]
        return swept or list(dict.fromkeys(str(row[key]) for row in self.printed if key in row))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def known() -> list[str]:
    """The names of all experiments that have a file."""
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@cache
def load(name: str) -> Experiment | None:
    """None where its file has no `report`. Raises Refused where there is no file, or none that can
    be read."""
    path = CONF / "experiment" / f"{name}.yaml"
    if name not in known():
        raise Refused(f"experiment {name}: has no file any more ({path.parent})")
    try:
        whole = read_yaml(path)
        if (spec := whole.get("report")) is None:
            return None
        check(spec)
    except FAULTS as error:
        raise Refused(f"experiment {name}: {one_line(error)} ({path})") from None
    return Experiment(name, spec, swept(whole))


def swept(whole: Mapping[str, Any]) -> dict[str, list[str]]:
    """The values of each key that the file sweeps over, in its order."""
    try:
        params = whole["hydra"]["sweeper"]["params"]
        return {key: [text.strip() for text in str(v).split(",")] for key, v in params.items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def check(spec: Any) -> None:
    """Raises Refused, naming the key, for a node that can't be understood."""
    for key, value in _group("report", spec).items():
        if key not in NODE:
            raise Refused(f"report.{key}: no such key; {nearest(str(key), list(NODE))}")
        if not isinstance(value, NODE[key]) or (NODE[key] is Sequence and isinstance(value, str)):
            raise Refused(f"report.{key}={value}: must be a {NODE[key].__name__.lower()}")
    rows = spec.get("rows") or ()
    if not rows or not all(isinstance(key, str) for key in rows):
        raise Refused("report.rows: must name at least one group or key that tells rows apart")
    _keys("report.reference", spec.get("reference") or {}, rows)
    for name, texts in _keys("report.labels", spec.get("labels") or {}, rows).items():
        if not isinstance(texts, str | Mapping):
            raise Refused(f"report.labels.{name}={texts}: must be a text with {{}}, or a group")
    for k, figure in enumerate(spec.get("figures") or ()):
        where = f"report.figures[{k}]"
        _one_of(f"{where}.kind", _group(where, figure).get("kind"), KINDS)
    for k, entry in enumerate((spec.get("published") or {}).get("rows") or ()):
        where = f"report.published.rows[{k}]"
        for name, value in _keys(where, entry, [*rows, *PUBLISHED]).items():
            if name in PUBLISHED and not is_number(value):
                raise Refused(f"{where}.{name}={value}: must be in percent")
    for k, claim in enumerate(spec.get("claims") or ()):
        where = f"report.claims[{k}]"
        for side in ("better", "than"):
            _keys(f"{where}.{side}", _group(where, claim).get(side), rows)
        _one_of(f"{where}.measure", claim.get("measure"), MEASURES)
        _one_of(f"{where}.equal", claim.get("equal", "gradients"), ["gradients"])
        if not isinstance(claim.get("text"), str):
            raise Refused(f"{where}.text: is missing; write what is claimed")
        if not is_number(claim.get("within", 0.0)):
            raise Refused(f"{where}.within={claim['within']}: must be in points")


def _group(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused(f"{where}={value}: must be a group of keys")
    return value


def _keys(where: str, value: Any, allowed: Sequence[str]) -> Mapping[str, Any]:
    for key in _group(where, value):
        _one_of(where, key, allowed)
    return value


def _one_of(where: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise Refused(f"{where}={value}: unknown; {nearest(str(value), list(allowed))}")
