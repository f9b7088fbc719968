"""What an experiment's file says of its report: the `report` node, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from runs import FAULTS, one_line, read_yaml

from sat.config import CONF, nearest
from sat.errors import Refused

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

    def order(self, keys: Mapping[str, Any]) -> list[tuple[int, float, str]]:
        """Where a row stands: as the file sweeps its values; others behind, by size or name."""
        places = []
        for key, value in keys.items():
            if is_number(value):
                places.append((0, float(value), ""))
                continue
            known, text = self._known(key), str(value)
            place = known.index(text) if text in known else len(known)
            places.append((place, 0.0, text))
        return places

    def _known(self, key: str) -> list[str]:
        """The values of a key in the order of the sweep, else in that of the published table."""
        swept = [text for text in self.swept.get(key, ()) if not text.startswith("$")]
        rows = (self.spec.get("published") or {}).get("rows", ())
        return swept or list(dict.fromkeys(str(row[key]) for row in rows if key in row))

    def published(self, keys: Mapping[str, Any]) -> dict[str, float] | None:
        """The published numbers of a row, in percent: of the entry that names most of its keys."""
        fitting = []
        for entry in (self.spec.get("published") or {}).get("rows", ()):
            named = {key: value for key, value in entry.items() if key in keys}
            if named and all(keys[key] == value for key, value in named.items()):
                fitting.append((len(named), {k: v for k, v in entry.items() if k not in keys}))
        return max(fitting, key=lambda found: found[0])[1] if fitting else None


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
    if not isinstance(spec, Mapping):
        raise Refused("report: is no group of keys")
    for key, value in spec.items():
        if key not in NODE:
            raise Refused(f"report.{key}: no such key; {nearest(str(key), list(NODE))}")
        if not isinstance(value, NODE[key]) or (NODE[key] is Sequence and isinstance(value, str)):
            raise Refused(f"report.{key}={value}: must be a {NODE[key].__name__.lower()}")
    rows = spec.get("rows") or ()
    if not rows or not all(isinstance(key, str) for key in rows):
        raise Refused("report.rows: must name at least one group or key that tells rows apart")
    for name in spec.get("reference") or ():
        _one_of("reference", name, rows)
    for name, texts in (spec.get("labels") or {}).items():
        _one_of("labels", name, rows)
        if not isinstance(texts, str | Mapping):
            raise Refused(f"report.labels.{name}={texts}: must be a text with {{}}, or a group")
    for k, figure in enumerate(spec.get("figures") or ()):
        _one_of(f"figures[{k}].kind", _mapping(f"figures[{k}]", figure).get("kind"), KINDS)
    for k, entry in enumerate((spec.get("published") or {}).get("rows") or ()):
        for name, value in _mapping(f"published.rows[{k}]", entry).items():
            _one_of(f"published.rows[{k}]", name, [*rows, *PUBLISHED])
            if name in PUBLISHED and not is_number(value):
                raise Refused(f"report.published.rows[{k}].{name}={value}: must be in percent")
    for k, claim in enumerate(spec.get("claims") or ()):
        check_claim(f"claims[{k}]", _mapping(f"claims[{k}]", claim), rows)


def check_claim(where: str, claim: Mapping[str, Any], rows: Sequence[str]) -> None:
    """Raises Refused for a claim that can't be decided."""
    for name in ("better", "than"):
        for key in _mapping(f"{where}.{name}", claim.get(name)):
            _one_of(f"{where}.{name}", key, rows)
    _one_of(f"{where}.measure", claim.get("measure"), MEASURES)
    if not isinstance(claim.get("text"), str):
        raise Refused(f"report.{where}.text: is missing; write what is claimed")
    if claim.get("equal", "gradients") != "gradients":
        raise Refused(f"report.{where}.equal={claim['equal']}: unknown; allowed: gradients")
    if not is_number(claim.get("within", 0.0)):
        raise Refused(f"report.{where}.within={claim['within']}: must be in points")


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused(f"report.{where}={value}: must be a group of keys")
    return value


def _one_of(where: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise Refused(f"report.{where}={value}: unknown; {nearest(str(value), list(allowed))}")
