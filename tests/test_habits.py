"""What carries on by itself: the workflow, the hooks and the citation say what is so."""

import re
import tomllib

import yaml
from conftest import ROOT

import sat

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def targets(text: str) -> list[str]:
    """The targets of `make` that a script or a workflow's line asks for."""
    return re.findall(r"^\s*make (\S+)", text, re.M)


def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def test_the_workflow_and_the_script_call_targets_that_are_there():
    called = set()
    for job in workflow()["jobs"].values():
        lines = [step["run"] for step in job["steps"] if "run" in step]
        assert lines and all(targets(line) for line in lines), "what is run is a target of make"
        called |= {target for line in lines for target in targets(line)}
        for name in re.findall(r" ([A-Z]+)=", " ".join(lines)):
            assert f"{name} ?=" in MAKEFILE, f"make takes no {name}"
    mine = targets((ROOT / ".ci/run").read_text())
    assert mine == ["check", "test"] and called == {*mine, "setup", "docs"}
    for target in called:
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target


def test_the_workflow_has_every_python_and_the_oldest_torch():
    job = workflow()["jobs"]["test"]
    called = [word for step in job["steps"] for word in targets(step.get("run", ""))]
    assert called == ["setup", "check", "test"], "all of it in each"
    matrix = job["strategy"]["matrix"]
    oldest, *_ = matrix["python"]
    assert PROJECT["project"]["requires-python"] == f">={oldest}" and len(matrix["python"]) == 3
    (torch,) = (d for d in PROJECT["project"]["dependencies"] if re.match(r"torch\W", d))
    assert [torch.replace(">=", "") + ".*", "torch"] == [f"torch{t}" for t in matrix["torch"]]


def test_check_is_ruff_and_mypy_and_the_hooks_are_ruffs():
    recipe = MAKEFILE.split("\ncheck:")[1].split("\n\n")[0]
    assert [word for word in ("ruff check", "ruff format --check", "mypy") if word in recipe] == [
        "ruff check", "ruff format --check", "mypy"]  # fmt: skip
    assert re.search(r"^test:.*\n.*pytest", MAKEFILE, re.M)
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]
    names = [
        re.split(r"\W", need)[0] for need in PROJECT["project"]["optional-dependencies"]["dev"]
    ]
    assert {"ruff", "mypy", "pytest"} <= {*names} and (ROOT / "sat/py.typed").exists()


def test_strict_modules_are_there():
    """mypy says nothing about a pattern that names no module."""
    overrides = PROJECT["tool"]["mypy"]["overrides"]
    (strict,) = (each["module"] for each in overrides if each.get("disallow_untyped_defs"))
    for name in strict:
        path = ROOT / name.removesuffix(".*").replace(".", "/")
        whole = name.endswith(".*") and path.is_dir()
        assert whole or path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


def test_the_citation_is_of_this_version_and_of_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == sat.__version__
    assert f"## {cited['version']}" in (ROOT / "CHANGELOG.md").read_text()
    (paper,) = cited["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2006.14536" and len(paper["authors"]) == 5


def test_commands_of_the_wheel_are_functions():
    import importlib

    for place in PROJECT["project"]["scripts"].values():
        module, name = place.split(":")
        assert callable(getattr(importlib.import_module(module), name)), place
