"""docs/extend.md, followed to the letter in an empty folder; and its classes moved into the
package, as CONTRIBUTING.md says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from crash.seeded_faults import copied

BLOCK = re.compile(r"(?:^`(\S+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)


def follow(text: str, folder: Path) -> list[str]:
    """Writes the files and gives the commands, in their order, to one shell; its lines."""
    commands = []
    for place, kind, content in BLOCK.findall(text):
        if kind == "sh":
            commands += content.splitlines()
            continue
        assert kind in ("python", "yaml") and place, f"a block of {kind} names no file"
        commands.append(f"cat > {place} <<'END'\n{content}END")
    script = folder / "all.sh"
    script.write_text("\n".join(["set -e", *commands]))
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(script)], cwd=folder, text=True, capture_output=True, timeout=600,
        env={**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_ten_minutes_to_a_first_activation_attack_and_objective(tmp_path):
    told = follow((ROOT / "docs/extend.md").read_text(), tmp_path)
    runs = sorted(path.parent.name for path in tmp_path.glob("outputs/*/result.json"))
    assert len(runs) == 3 and '"status": "finished",' in " ".join(told)
    for words in ("pgd1-1ep", "momentum2-1ep", "momentum2-mixed"):
        assert any(f"mysquareplus-{words}" in run for run in runs), (words, runs)
    written = [path.read_text() for path in tmp_path.glob("outputs/*/config.yaml")]
    assert all("_target_: mine.MySquarePlus" in text for text in written)


# Tests that look at every option, and those that hold a list.
LISTS = """
test_config.py::test_every_class_is_an_option_and_every_option_is_a_class
test_identity.py::test_defaults_are_moved_deliberately
test_activations.py::test_a_yaml_file_gives_every_argument_its_default_but_inplace
test_objectives.py::test_no_objective_moves_what_chooses_best_nor_the_test
test_docs.py::test_the_page_on_training_has_every_group_and_names_no_option_that_is_gone
test_usage.py test_layout.py
"""
PLACES = {"mine/__init__.py": "activations", "mine/attacks.py": "attacks",
          "mine/objectives.py": "objectives"}  # fmt: skip


def test_a_class_and_a_file_are_enough_in_the_package_too(tmp_path):
    copy = copied(tmp_path)
    for place, kind, content in BLOCK.findall((ROOT / "docs/extend.md").read_text()):
        if kind == "python":
            (copy / f"sat/{PLACES[place]}/mine.py").write_text(f'"""Mine."""\n\n{content}')
        elif kind == "yaml":
            package = f"sat.{Path(place).parent.name}s.mine"
            (copy / place).write_text(re.sub(r"mine(\.(attacks|objectives))?\b", package, content))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
         *(f"tests/{name}" for name in LISTS.split())],
        cwd=copy, text=True, capture_output=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
