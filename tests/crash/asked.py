"""Commands asked in this process or in their own, and what every answer must be."""

import io
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 600  # seconds until a command counts as one that hangs; each takes about one
# A run of a second: few images, few channels, weak attacks.
TINY = [
    "dataset.limit=160", "dataset.holdout=30", "model.width=0.0625", "schedule.epochs=3",
    "schedule.batch_size=32", "validation.attack.steps=2", "evaluation.attacks.pgd20.steps=3",
    "evaluation.limit=50", "schedule.precision=fp32", "evaluation.masking_checks=0", "device=cpu",
]  # fmt: skip


@dataclass
class Answer:
    code: int
    out: str
    err: str

    def complaints(self, longest: int = 1500) -> list[str]:
        """What is wrong with it: an exit code of 0, 1 or 2, and a message a line."""
        lines, told = self.err.splitlines(), f"{self.code}\n{self.out[-500:]}\n{self.err[-2000:]}"
        if "Traceback" in self.out + self.err:
            return [f"a traceback: {told}"]
        if self.code not in (0, 1, 2):
            return [f"exit code {told}"]
        found = [f"no message of ours: {line[:300]}" for line in lines if not line.startswith("! ")]
        found += ["nothing is told: " + told] * (self.code != 0 and not lines)
        return found[:1] or [f"{len(x)} letters: {x[:300]}" for x in lines if len(x) > longest][:1]


class Hang(BaseException):
    """Nothing in the program catches it."""


@contextmanager
def streams(argv: list[str]) -> Iterator[list[io.TextIOWrapper]]:
    """Standard output and error as they are in a terminal, which a lone surrogate may not enter;
    a command that hangs is ended. Threads, signals and arguments are as before afterwards."""
    import torch

    def stop(number, frame):
        raise Hang(f"no answer within {DEADLINE} s")

    before = sys.stdout, sys.stderr, sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    threads = torch.get_num_threads()
    sys.stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
    sys.stderr = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    sys.argv = argv
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(DEADLINE)
    try:
        yield [sys.stdout, sys.stderr]
    finally:
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        sys.stdout, sys.stderr, sys.argv = before


def answer(main: Callable[[], int | None], *argv: str) -> Answer:
    """What a command said, in this process."""
    with streams([*argv]) as both:
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        except Exception:  # as Python would tell it
            code = 1
            traceback.print_exc()
        for stream in both:
            stream.flush()
        texts = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in both]
    return Answer(code if isinstance(code, int) else 0, *texts)


def ask(*words: str) -> Answer:
    """`sat` with these words, in this process."""
    from hydra.core.global_hydra import GlobalHydra

    from sat.run import main

    log = logging.getLogger("sat")
    for handler in list(log.handlers):  # its streams belong to an earlier command
        log.removeHandler(handler)
    try:
        return answer(main, "sat", *words)
    finally:
        GlobalHydra.instance().clear()


def ask_process(folder: Path, *words: str, seconds: float = 120) -> Answer:
    """The same in a process of its own, stopped where it trains for long."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "sat.run", *words], cwd=folder, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:  # no hang, if it stops when it is asked to
        process.terminate()
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return Answer(-signal.SIGKILL, *process.communicate())
        return Answer(0, out, "\n".join(x for x in err.splitlines() if x.startswith("!")))
    return Answer(process.returncode, out, err)
