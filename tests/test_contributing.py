"""docs/extend.md, followed to the letter in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

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
    for words in ("squareplus-pgd1-1ep", "squareplus-momentum2-1ep", "squareplus-momentum2-mixed"):
        assert any(words in run for run in runs), (words, runs)
