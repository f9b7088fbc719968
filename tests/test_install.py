"""The command as it is installed: from a wheel and as a console script, each with its configs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY


def run(*command: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_a_wheel_brings_its_configs(tmp_path):
    pytest.importorskip("build", reason="needs the package build (extra dev)")
    pytest.importorskip("hatchling", reason="needs the package hatchling (extra dev)")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path),
                str(ROOT), cwd=tmp_path)  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    installed = run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--target", str(site), str(wheel), cwd=tmp_path)  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    assert (site / "sat/conf/config.yaml").exists() and not (site / "conf").exists()
    code = "import sat.run; print(sat.run.CONF); sat.run.main()"
    done = run(sys.executable, "-c", code, *TINY, cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site)) and "pgd20" in done.stdout
    assert list(tmp_path.glob("outputs/*/result.json"))


def test_the_console_script_finds_its_configs(tmp_path):
    script = shutil.which("sat", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed in this environment")
    done = run(script, "activation=gleu", cwd=tmp_path)
    assert done.returncode == 2 and "activation=gleu" in done.stderr
    assert list(tmp_path.iterdir()) == []
