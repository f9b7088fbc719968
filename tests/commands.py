"""The commands that README and the pages of docs/ give."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = r"(?:python -m sat\.run|python scripts/\w+\.py|torchrun |sat(?:-\w+)? |make )"
OURS = rf"(?:[A-Z_]+=\S+ )*{PROGRAM}"


def commands(page: Path) -> list[str]:
    """The command lines of a page, of its blocks, indented or fenced, and of its text: continued
    lines joined, without comments and without what follows `&&`."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text())
    blocks = re.findall(rf"^(?:    )?({OURS}.*)$", text, re.M)
    inline = re.findall(rf"`({OURS}[^`]*)`", re.sub(r"\s*\n\s*", " ", text))
    lines = [re.split(r"  *(?:#|&) ?", line)[0] for line in [*blocks, *inline]]
    return list(dict.fromkeys(lines))


def words(command: str) -> list[str]:
    """The words of a command as a shell takes them."""
    return shlex.split(command)
