"""The commands that README and the pages of docs/ give, as lines and as words."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = r"(?:[A-Z_]+=\S+ )*(?:python -m sat\.run|python scripts/|torchrun |sat(?:-\w+)? |make )"


def commands(page: Path) -> list[str]:
    """The command lines of a page's blocks, indented or fenced, and of its text; of blocks all
    lines that begin as a command of this program does, continued lines joined."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text())
    blocks = re.findall(rf"^(?:    )?({OURS}.*)$", text, re.M)
    inline = re.findall(rf"`({OURS}[^`]+)`", text.replace("\n", " "))
    return list(dict.fromkeys([*blocks, *inline]))


def words(command: str) -> list[str]:
    """The words of a command as a shell takes them, without its comment."""
    return shlex.split(command, comments=True)
