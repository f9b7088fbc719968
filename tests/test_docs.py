"""README and the pages of docs/: links lead somewhere, commands compose, options are all told."""

import argparse
import ast
import importlib
import re
import runpy
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import commands
import pytest
from commands import PAGES, ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser

from sat import config
from sat.config import joint
from sat.loggers import usage

DOCS = ROOT / "docs"
COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands.commands(page)))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by, on a site as on a forge."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    heads = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", page.read_text()):
        if re.match(r"https?://\S+\.\S+", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name(page)}: {link}"
        assert page.parent == ROOT or target.is_relative_to(DOCS), f"{link}: not on the site"
        assert not anchor or anchor in anchors(target), f"{name(page)}: {link}"


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", text, re.M)
    written = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.glob("*.md"))
    assert sorted(listed) == written


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_of_the_pages_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        ast.parse(block)


def test_the_page_on_training_has_every_group_and_names_no_option_that_is_gone():
    """`--help` lists all options of a group, those of a folder of the user's too."""
    rows = re.findall(r"^\| (`.+) \|$", (DOCS / "train.md").read_text(), re.M)
    told = {}
    for groups, options, *_ in (row.split(" | ") for row in rows):
        for group in re.findall(r"`([a-z_/]+)`", groups):
            told[group] = options
    for group, there in usage.groups([config.CONF]).items():
        if group != "record" and not group.startswith("experiment/"):
            named = {*" ".join(re.findall(r"`([\w ]+)`", told.pop(group))).split()}
            assert named <= {*there}, f"{group}: {sorted(named - {*there})}"
    assert not told, "are no groups"


# commands -----------------------------------------------------------------------------------------


class Parsed(Exception):
    """A command's own parser has taken its options; what it left is of Hydra."""


def last_of_each(words: list[str]) -> Iterator[str]:
    """The overrides of a sweep's last job; the other options of a group are there as well."""
    words = [word for word in joint.joined(words)[0] if word != "-m"]
    for override in OverridesParser.create().parse_overrides(words):
        if not override.is_sweep_override():
            yield override.input_line
        elif not override.is_choice_sweep():  # interval(0.05, 0.8)
            yield f"{override.key_or_group}={override.value().start}"
        else:
            values = list(override.sweep_string_iterator())
            assert {*values} <= {*config.options().get(override.key_or_group, values)}
            yield f"{override.input_line.partition('=')[0]}={values[-1]}"


@cache
def composes(overrides: tuple[str, ...]) -> None:
    """Composes and checks a run, without what depends on packages and files."""
    cfg, choices = config.compose(overrides)
    config.check({**config.resolve(cfg), "logger": {}, "choices": choices})


def of_hydra(words: list[str]) -> None:
    """Checks the words of `sat.run`; a folder of options is one that the page has the reader make,
    and what `evaluate` names is, too."""
    if "--config-dir" in words:
        return
    options = [word for word in words if word.startswith("-")]
    assert {*options} <= {"-m", "--help", "--version", "-sc", "--cfg"}
    given = [word for word in words if word not in (*options, "...", "job", "install=bash")]
    kept = [word for word in given if not re.match("evaluate=|hydra[./]", word)]
    composes(tuple(last_of_each(["-m", *kept] if "-m" in words else kept)))


def parses(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a command's own parser leaves to Hydra."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, main = scripts.get(program, "").partition(":")
    parse = argparse.ArgumentParser.parse_known_args

    def parsed(self, given=None, namespace=None):
        raise Parsed(parse(self, given, namespace)[1])

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsed)
    monkeypatch.setattr("sys.argv", [program, *words])
    with pytest.raises(Parsed) as left:
        if module:
            getattr(importlib.import_module(module), main)()
        else:  # a program of its own
            runpy.run_path(str(ROOT / f"scripts/{program.removeprefix('sat-')}.py"))["main"]()
    return left.value.args[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command, monkeypatch):
    words = commands.words(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "sat" or "sat.run" in words:
        of_hydra(words[words.index("sat.run") + 1 if "sat.run" in words else 1 :])
    else:
        script = words[0] == "python"
        assert not script or (ROOT / words[1]).exists()
        program = f"sat-{Path(words[1]).stem}" if script else words[0]
        left = parses(program, words[1 + script :], monkeypatch)
        assert not left or program in ("sat-forecast", "sat-benchmark")
        of_hydra(left)
