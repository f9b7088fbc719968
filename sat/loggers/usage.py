"""What `--help` says; of `sat.run` groups, options, and every key of the run as it stands with what
it means, which is the comment beside it in the YAML files."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sat.loggers.screen import fitted, refuse

HEAD = """\
sat: adversarial training with smooth activations

  sat activation=gelu attack.steps=2          trains one network, and measures it
  sat -m activation=relu,silu seed=0,1,2      a sweep: a run of each combination
  sat evaluate=outputs/RUN evaluation=strong  a trained model, measured again
  sat objective=trades --help                 the keys of another option

  python -m sat.run  is the same as sat
  --version          this program's version
  --cfg job          the run as YAML
  --config-dir DIR   options of your own, DIR/GROUP/OPTION.yaml
  -sc install=bash   tab completion: eval "$(sat -sc install=bash)"
  --hydra-help       what else Hydra takes

Groups, and their options:
"""
HIDDEN = ("sizes", "report", "published", "hydra/launcher")  # what is no choice of a run
KEY = re.compile(r"( *)([^\s#:]+):(?!\S)(.*)")
Config = Mapping[str, Any]


class Parser(argparse.ArgumentParser):
    """Takes the words of a command beside `sat.run`. Its help is `about`, the options and what they
    mean, in the width of the terminal; what it refuses is one line, exit code 2."""

    def __init__(self, prog: str, usage: str | None, about: str | None):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, usage, about, formatter_class=raw, allow_abbrev=False)

    def format_help(self) -> str:
        return fitted(super().format_help())

    def error(self, message: str) -> NoReturn:
        refuse(f"{self.prog}: {message}; see --help")
        self.exit(2)


def seconds_of(text: str) -> float:
    """`90s`, `10m`, `1.5h` of a command line, in seconds."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)):
        raise argparse.ArgumentTypeError(f"{text}: write a time, such as 90s, 10m, 1.5h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def positive(text: str) -> int:
    """A whole number of a command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or above")
    return number


def text(config: Config, choices: Mapping[str, str | None], places: Sequence[Path]) -> str:
    """The help on a composed config, whose options were found in these folders of YAML files."""
    width = shutil.get_terminal_size((100, 0)).columns
    lines = [HEAD]
    for group, names in groups(places).items():
        if len(names) == 1 or "/" in group and group.startswith("experiment"):
            continue  # no choice; the pieces of an experiment
        line = f"{group}: {', '.join(names)}"
        lines.append(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="    "))
    lines.append("\nThis run, and what each key means (of further attacks what they change):\n")
    meaning = meanings(places, "", "config")
    for place, option in choices.items():
        group, _, path = place.partition("@")
        for key, said in meanings(places, group, option).items():
            meaning[f"{path or group.replace('/', '.')}.{key}".removesuffix(".")] = said
    for name in config.get("logger") or ():
        meaning |= {f"logger.{key}": s for key, s in meanings(places, "logger", name).items()}
    shown = {key: value for key, value in config.items() if key not in HIDDEN}
    for key, value in sorted(shown.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping):
            option = choices.get(key) or f"[{','.join(value)}]"
            lines += ["", aligned(f"{key}={option}", meaning.get(key, ""), width)]
        for path, leaf in leaves(value, key):
            word = f"{'  ' * isinstance(value, Mapping)}{path}={flow(leaf)}"
            said, name = meaning.get(path, ""), path.split(".")[-1]
            if path.count(".") > 1 and said == meaning.get(f"attack.{name}"):
                if config["attack"].get(name) == leaf:
                    continue
                said = ""
            lines.append(aligned(word, said, width))
    return "\n".join(lines)


def groups(places: Sequence[Path]) -> dict[str, list[str]]:
    """The names of all options, by group."""
    found: dict[str, set[str]] = {}
    for place in places:
        for file in place.glob("*/**/*.yaml"):
            found.setdefault(file.parent.relative_to(place).as_posix(), set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(found.items()) if group not in HIDDEN}


def meanings(places: Sequence[Path], group: str, option: str | None) -> dict[str, str]:
    """The comments of an option by dotted key, with those of the options that it builds on; its
    own, the first lines of its file, by the empty key."""
    files = [place / group / f"{option}.yaml" for place in places]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    written = file.read_text()
    found: dict[str, str] = {}
    for base in (yaml.safe_load(written) or {}).get("defaults", ()) if group else ():
        if isinstance(base, Mapping):  # {/attack@attacks.pgd20: pgd}
            ((place, name),) = base.items()
            other, _, path = place.removeprefix("override ").lstrip("/").partition("@")
            inherited = meanings(places, other, name).items() if path else ()
            found |= {f"{path}.{key}".removesuffix("."): said for key, said in inherited}
        elif base != "_self_":
            found |= meanings(places, group, base)
    return {**found, **comments(written)}


def comments(written: str) -> dict[str, str]:
    """The comments of a YAML file by dotted key; its first lines by the empty key."""
    lines = written.splitlines()
    head = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    first = [line[1:].strip() for line in lines[:head] if not line.startswith("# @package")]
    found = {"": " ".join(first)}
    above: list[tuple[int, str]] = []
    for line in lines[head:]:
        if match := KEY.match(line):
            indent, key, rest = match.groups()
            above = [(depth, name) for depth, name in above if depth < len(indent)]
            above.append((len(indent), key))
            if said := rest.partition(" # ")[2]:
                found[".".join(name for _, name in above)] = said.strip()
    return found


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The keys below a place of the config, dotted, but for the names of classes."""
    if not (isinstance(value, Mapping) and value):
        yield path, value
        return
    for key, below in value.items():
        if key != "_target_":
            yield from leaves(below, f"{path}.{key}")


def flow(value: Any) -> str:
    """A value as the command line takes it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return value if isinstance(value, str) else text.replace(", ", ",")


def aligned(word: str, meaning: str, width: int) -> str:
    """A word, and what it means beside it or, of long words, below."""
    margin = " " * 34
    said = textwrap.fill(meaning, width, initial_indent=margin, subsequent_indent=margin)
    return word + (said[len(word) :] if len(word) < len(margin) else f"\n{said}" * bool(meaning))
