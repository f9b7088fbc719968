"""Where a number was made: versions, commit, machine, command."""

import hashlib
import platform
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sat.launch import processes

PACKAGE = Path(__file__).parents[1]


def code_digest() -> str:
    """Eight hex digits of this package's sources, to tell whether the code has changed."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def environment(device: Any) -> dict[str, Any]:
    """Versions, commit and machine, for `result.json`."""
    import timm
    import torch
    import torchvision

    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "commit": _commit(),
        "code": code_digest(),
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "processes": processes()[1],
        "host": socket.gethostname(),
        "command": typed(*sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def typed(program: str, *words: str) -> str:
    """A command line to be typed again, whichever way the program was started: without the folder
    that it lay in, and without the ++ that `sat.config.joint` puts before a word."""
    name = Path(program).name
    command = ["python", "-m", "sat.run"] if name == "run.py" else [name]
    return shlex.join([*command, *(word.removeprefix("++") for word in words)])


def _commit() -> str | None:
    """The commit of the checkout that this package lies in; None of an installed one, or without
    git."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    git = ["git", "-C", str(PACKAGE), "rev-parse", "HEAD"]
    with suppress(OSError):
        told = subprocess.run(git, capture_output=True, text=True, check=False).stdout
        return told.strip() or None
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
