"""The groups of the config folder: their options, the classes that these name, and their keys; and
what a word that none of them has may have meant."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sat.errors import Refused, printable
from sat.identity import SECTIONS, class_name

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
SCALARS = {"seed": int, "device": str, "evaluate": str | None}


def key_of(override: str) -> str:
    """`attack.steps` of `+attack.steps=3`."""
    return override.split("=", 1)[0].lstrip("+~")


@cache
def options() -> dict[str, list[str]]:
    """The groups of the config folder and the names of their options."""
    groups: dict[str, list[str]] = {}
    for file in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, []).append(file.stem)
    return groups


def targets(path: str) -> dict[str, str]:
    """The classes that may stand at a place of the config, and where each is now: those that the
    files of its group name; within a group, attacks and whatever else its files have there. The
    config of a run may have been written when they were elsewhere."""
    group, _, nested = path.partition(".")
    if not nested or is_group(path):
        return _named(path.replace(".", "/"), r"^_target_: *(\S+)")
    within = _named(group, r"^ +_target_: *(\S+)")
    return within if group == "logger" else within | _named("attack", r"^_target_: *(\S+)")


def is_group(path: str) -> bool:
    """Whether options of their own may stand at a place: `schedule.decay`."""
    return (CONF / path.replace(".", "/")).is_dir()


@cache
def class_of(group: str, option: str) -> str | None:
    """The class that an option's file names, or one of the options that it builds on."""
    if option not in options().get(group, ()):
        return None
    text = (CONF / group / f"{option}.yaml").read_text()
    if own := re.search(r"^_target_: *(\S+)", text, re.M):
        return class_name(own[1])
    bases = [base for base in yaml.safe_load(text)["defaults"] if isinstance(base, str)]
    return next(filter(None, (class_of(group, base) for base in bases)), None)


@cache
def _named(group: str, pattern: str) -> dict[str, str]:
    texts = [file.read_text() for file in (CONF / group).glob("*.yaml")]
    names = [name for text in texts for name in re.findall(pattern, text, re.M)]
    return {name.rpartition(".")[2]: name for name in names}


# words that no group has ------------------------------------------------------------------------

# What is looked for where it is not, and where it is.
ELSEWHERE = {
    "eps": "dataset.eps (of all attacks) or attack.eps (of the training alone)",
    "evaluation.eps": "dataset.eps, which all attacks follow",
    "evaluation.steps": "evaluation.attacks.NAME.steps",
    "objective.lambda": "objective.beta, where the objective has one",
}

# What others call a key.
SYNONYMS = {
    "bs": "batch_size", "epoch": "epochs", "epsilon": "eps", "lr": "learning_rate",
    "n_epochs": "epochs", "num_epochs": "epochs", "num_steps": "steps", "opt": "optimizer",
    "random_start": "start", "step_size": "step", "wd": "weight_decay",
}  # fmt: skip


def unknown(given: Mapping[str, Any], allowed: list[str], prefix: str, cls: Any = None) -> None:
    """Refuses a key that nothing reads, naming the nearest one."""
    for key in given:
        if key not in allowed:
            who = f" of {cls.__name__}" if cls else ""
            line = f"{prefix}{key}={short(given[key])}: no such key{who}"
            raise Refused(f"{line}; {instead(prefix + str(key), str(key), allowed)}")


def instead(key: str, word: str, allowed: list[str], config: Any = None) -> str:
    """Ends a line about a key that is not there: the key that was meant, of those in the composed
    `config` if it is there, or names like the word that nobody knows, and the options that have it.
    """
    if (place := ELSEWHERE.get(SYNONYMS.get(key, key))) is not None:
        return f"it is {place}"
    if key == "dataset.root" and "path" in allowed:
        return "it is dataset.path"
    if (whole := meant(key, config)) not in (None, key):
        return f"it is {whole}"
    group, _, name = key.partition(".")
    pattern = rf"^{re.escape(name)}:"
    files = sorted((CONF / group).glob("*.yaml")) if name and group in options() else []
    having = [file.stem for file in files if re.search(pattern, file.read_text(), re.M)]
    there = f"; options of {group} with {name}: {', '.join(having)}" if having else ""
    return nearest(word, allowed) + there


def meant(word: str, config: Any = None) -> str | None:
    """The whole key that a word stands for: `schedule.epochs` of `epochs`, `attack.eps` of
    `epsilon` or `attack.epsilon`; two where two groups have it, in the composed `config` if any has
    it there; None of a word that none has."""
    group, _, name = word.rpartition(".")
    name = SYNONYMS.get(name, name)
    if not group and name in (*options(), *SCALARS):
        return name
    places = [g for g in options() if g in SECTIONS and name in _keys(g) and group in ("", g)]
    places = [g for g in places if name in ((config or {}).get(g) or ())] or places
    places.sort(key=("schedule attack model activation".split() + places).index)
    return " or ".join(f"{place}.{name}" for place in places[:2]) or None


@cache
def _keys(group: str) -> frozenset[str]:
    """Every key that some option of a group has."""
    texts = [file.read_text() for file in (CONF / group).glob("*.yaml")]
    return frozenset(key for text in texts for key in re.findall(r"^(\w+):", text, re.M))


def nearest(word: str, allowed: list[str]) -> str:
    """`did you mean x? allowed: x, y, z`, for the end of a line."""
    close = get_close_matches(word, allowed, 1, 0.5)
    listed = "allowed: " + (", ".join(allowed) or "none")
    if close and len(listed) > 300:
        return f"did you mean {close[0]}? {len(allowed)} are allowed, see --help"
    return f"did you mean {close[0]}? {listed}" if close else listed


def short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 60 else text[:57] + "..."
