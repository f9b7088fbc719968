"""The rules of the layout: who may import what, what things are called, how large they may grow."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAT = ROOT / "sat"
SOURCES = sorted(SAT.rglob("*.py"))
ALL = [*SOURCES, *sorted((ROOT / "scripts").glob("*.py"))]
PROSE = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# Each tier imports from those after it alone; members of one tier don't import each other.
TIERS = """
python > run > bench > job > sweep > report > training > evaluation > objectives > attacks data >
acceleration distributed > models > activations > config > loggers > rundir >
identity rng statistics launch arguments > errors
"""
TIER = {name: i for i, tier in enumerate(TIERS.split(">")) for name in tier.split()}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    """The package's modules by their dotted names."""
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES)
    return {name.removesuffix(".__init__"): p for name, p in zip(names, SOURCES, strict=True)}


def part_of(module: str) -> str:
    """`attacks` of sat.attacks.pgd."""
    return module.split(".")[1] if "." in module else ""


def functions(path: Path) -> list[tuple[ast.FunctionDef, int]]:
    return [
        (node, node.end_lineno - node.lineno + 1)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef)
    ]


def function(path: str, name: str) -> int:
    """The length of a function in lines."""
    return next(length for node, length in functions(SAT / path) if node.name == name)


def test_hydra_and_omegaconf_stay_in_three_files():
    using = {
        path.relative_to(SAT).as_posix()
        for path in SOURCES
        if any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    }
    assert using <= {"config/composing.py", "run.py", "sweep.py"}


def test_imports_follow_the_tiers():
    known = modules()
    for module, path in known.items():
        if not (mine := part_of(module)):
            continue  # the package itself loads, trains and evaluates, each when it is asked to
        for other in {part_of(name) for name in imports(path) if name.startswith("sat.")}:
            assert mine in TIER and other in TIER, f"{path}: {mine} or {other} stands in no tier"
            assert other == mine or TIER[mine] < TIER[other], f"{path} imports sat.{other}"


def test_no_module_imports_itself_by_way_of_others(capsys):
    known = modules()
    graph = {
        module: {name for name in imports(path) if name in known and name != module}
        for module, path in known.items()
        if module != "sat"
    }
    depth: dict[str, int] = {}

    def walk(module: str, above: tuple[str, ...]) -> int:
        assert module not in above, " > ".join([*above, module])
        if module not in depth:
            below = [walk(name, (*above, module)) for name in sorted(graph.get(module, ()))]
            depth[module] = 1 + max(below, default=0)
        return depth[module]

    longest = max(walk(module, ()) for module in graph)
    packages = sum(path.name == "__init__.py" for path in SOURCES)
    with capsys.disabled():
        print(f" [{packages} packages, longest chain of imports {longest}]", end="")
    assert longest <= 24


def test_a_stranger_sees_the_concerns():
    """Folders and loose files together; each folder says in its first line what it is for."""
    shown = [p for p in SAT.iterdir() if p.name not in ("__pycache__", "conf", "py.typed")]
    assert len(shown) <= 25, sorted(p.name for p in shown)
    for folder in (p for p in shown if p.is_dir()):
        assert ast.get_docstring(tree_of(folder / "__init__.py")), folder


PRIVATE_WORDS = {
    "Journal", "Examination", "Tally", "Shelf", "Doubts", "doubts", "told", "Strong", "Draws",
    "recalled", "agreeing", "searched", "twin", "introduction", "Bystander", "utils", "helpers",
}  # fmt: skip


def named(node: ast.AST) -> str | None:
    """The name that a node gives to something: a class, a function, an argument, a variable."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    return None


def test_things_are_called_what_the_field_calls_them():
    for path in SOURCES:
        assert path.stem not in ("utils", "helpers", "common", "manager"), path
        for node in ast.walk(tree_of(path)):
            word = named(node)
            spoken = word == "told" and not isinstance(node, ast.FunctionDef)  # what was said
            assert word not in PRIVATE_WORDS or spoken, f"{path}:{node.lineno}: {word}"


def test_a_docstring_stands_alone():
    """It begins with a verb or a noun, not with what stands for one or hangs on one."""
    hanging = r"(The same|That of|Those of|Of|In|With|By|As|It|Its|These|There|And|But) "
    for path in ALL:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                assert not re.match(hanging, text), f"{path}: {text.splitlines()[0]}"


def test_the_loop_and_the_step_fit_on_a_screen():
    assert function("training/loop.py", "fit") <= 30
    assert len((SAT / "training/step.py").read_text().splitlines()) <= 80


def test_functions_stay_small():
    lengths = [length for path in ALL for _, length in functions(path)]
    assert max(lengths) <= 60
    assert sum(length <= 30 for length in lengths) >= 0.9 * len(lengths)
    for path in ALL:
        for node, _ in functions(path):
            given = [a.arg for a in node.args.args + node.args.kwonlyargs]
            assert len([a for a in given if a not in ("self", "cls")]) <= 6, f"{path}: {node.name}"


def test_scripts_are_thin():
    """But for the loop over the plan for a GPU, which is no part of the package."""
    for path in (ROOT / "scripts").glob("*.py"):
        most = 120 if path.stem == "gpu_plan" else 40
        assert len(path.read_text().splitlines()) <= most, path


ASKING = ("hasattr", "getattr", "vars", "asdict", "astuple", "dir", "signature")
MAY_ASK = {
    ("attacks/base.py", "check_fields"),  # which gives a class what goes without saying
    ("evaluation/robustness.py", "_settings"),  # writes them all down
}


def test_what_an_attack_is_stands_in_its_class():
    """Nobody finds out by other means what an attack is; nor by protocols that ask in secret."""
    asked = set()
    for path in SOURCES:
        where = path.relative_to(SAT).as_posix()
        for function, _ in functions(path):
            for node in ast.walk(function):
                name = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
                if name in ASKING and node.args:
                    of = ast.unparse(node.args[0])
                    if re.search(r"attack|objective|judge|ensemble", of):
                        asked.add((where, function.name))
    assert asked == MAY_ASK
    plain = r"\b(APGD|FAB|FGSM|PGD|Square|Multi|Free|FastAutoAttack|AutoAttack)\b"
    for path in SOURCES:
        where = path.relative_to(SAT).as_posix()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                named = re.search(plain, ast.unparse(node.args[1]))
                # curves are of PGD alone, and so are the loops that a step is compared with
                assert not named or where in ("attacks/curve.py", "bench/benchmark.py"), where
    for path in SOURCES:
        if part_of(".".join(path.relative_to(ROOT).parts)) in ("attacks", "objectives"):
            assert "runtime_checkable" not in path.read_text(), path


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


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_prose_can_be_read_in_a_plain_terminal(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        assert len(line) <= 100 or line.startswith(("|", "![", "http")), f"{path}:{number}"
