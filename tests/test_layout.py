"""The rules of the layout: who may import what, and how large things may grow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "sat").rglob("*.py"))
ALL = [*SOURCES, *sorted((ROOT / "scripts").glob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node, node.end_lineno - node.lineno + 1


def test_hydra_and_omegaconf_stay_in_two_files():
    using = {
        path.name
        for path in SOURCES
        if any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    }
    assert using == {"config.py", "run.py"}


PARTS = "attacks/pgd train objectives schedule draws activations surrogate swap models evaluate"


@pytest.mark.parametrize("part", PARTS.split())
def test_parts_meet_as_objects(part):
    """A part imports no other part, beyond random numbers and what is below it."""
    below = {
        "train": {"distributed", "faults", "hardware", "plan", "precision", "schedule", "sharding"}
        | {"compilation", "fold", "recomputation", "surrogate"},
        "models": {"swap"},
        "evaluate": {"distributed", "statistics"},
    }
    mine = imports(ROOT / "sat" / f"{part}.py")
    named = {name.split(".")[1] for name in mine if name.startswith("sat.")}
    assert named <= {"draws", "errors", "tally"} | below.get(part, set())


def test_the_loop_fits_on_a_screen():
    fit = next(f for f, _ in functions(ROOT / "sat/train.py") if f.name == "fit")
    assert fit.end_lineno - fit.lineno < 30


def test_functions_and_files_stay_small():
    lengths = [length for path in ALL for _, length in functions(path)]
    assert max(lengths) <= 60
    assert sum(length <= 30 for length in lengths) >= 0.9 * len(lengths)
    for path in ALL:
        assert len(path.read_text().splitlines()) <= 400, path
        for function, _ in functions(path):
            given = [a.arg for a in function.args.args + function.args.kwonlyargs]
            assert len([a for a in given if a not in ("self", "cls")]) <= 6, function.name


def test_help_loads_neither_torch_nor_timm():
    code = (
        "import sys; sys.argv = ['sat', '--help']\n"
        "import sat.run\n"
        "try: sat.run.main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = 'torch timm torchvision sklearn scipy numpy matplotlib tensorboard PIL'\n"
        "print(sorted({*heavy.split()} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "activation: " in done.stdout and done.stdout.strip().endswith("[]"), done.stdout[-300:]


def test_readme_is_short_and_its_keys_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for target in re.findall(r"(?:`|^    )make ([a-z]+)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
