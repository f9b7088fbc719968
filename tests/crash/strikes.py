"""A run that kills itself at a chosen point: `python strikes.py STRIKE [key=value ...]`.

The process sends itself a signal in the n-th call of a function of the program: a kill as real as
one from outside, at a place that a moment of chance would rarely meet.
"""

import fnmatch
import io
import json
import os
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

# What a process is made to do in the n-th call of a function: "before" it, "after" it, or with
# "half" of its file written. A pattern chooses the calls by the name of the file that they make.
TRAINING = {
    "gradients there, weights not": ("sat.training.state.TrainState.apply", "before", None),
    "updated, not logged": ("sat.training.loop.attempt", "after", None),
    "logged, TensorBoard not": ("sat.rundir.record.Run.write_metrics", "after", None),
    "validated, not logged": ("sat.training.validation.measure_together", "after", None),
    "best.pt there, last.pt not": ("os.replace", "after", "best.pt"),
    "half a checkpoint written": ("torch.save", "half", None),
    "checkpoint written, not renamed": ("os.replace", "before", "last.pt"),
    "previous.pt linked, not renamed": ("os.link", "after", "*previous*"),
    "between the two renames": ("os.replace", "after", "previous.pt"),
    "both renamed": ("os.replace", "after", "last.pt"),
}
EVALUATION = {
    "measured, not kept": ("sat.evaluation.evaluator.measure_together", "after", None),
    "flags written, not renamed": ("os.replace", "before", "*.npz"),
    "result written, not renamed": ("os.replace", "before", "result.json"),
    "result renamed": ("os.replace", "after", "result.json"),
}
POINTS = TRAINING | EVALUATION
RARE = ("validated, not logged", "best.pt there, last.pt not", *EVALUATION)  # once or twice a run
# Strikes that come from outside: to all processes of a command, or to one of a sweep.
STARTING, MOMENT = "while it starts", "at a random moment"
WORKER, COMMAND = "a worker of a sweep", "the command line of a sweep"
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}


@dataclass(frozen=True)
class Strike:
    """What kills a process, and where. `nth` counts calls; for a random moment it is the share of
    the run's time that has passed."""

    where: str
    nth: float
    signals: tuple[str, ...]

    @property
    def code(self) -> int:
        return CODES[self.signals[0]]

    def __str__(self) -> str:
        nth = f"{self.nth:g}" if self.where in POINTS else f"{self.nth:.0%}"
        return f"{self.where:33} {nth:>5}  {'+'.join(self.signals):15}"


def kill_itself_at(strike: Strike) -> None:
    """Makes the n-th call at the strike's point send this process the signals."""
    place, moment, pattern = POINTS[strike.where]
    owner, name = owner_of(place)
    real, calls = getattr(owner, name), []

    def die() -> None:
        for each in strike.signals:
            os.kill(os.getpid(), signal.Signals[each])

    def struck(*given: Any, **more: Any) -> Any:
        mine = pattern is None or fnmatch.fnmatch(Path(given[1]).name, pattern)
        calls.extend([1] * mine)
        if not mine or len(calls) != strike.nth:
            return real(*given, **more)
        if moment == "half":
            real(given[0], whole := io.BytesIO())
            given[1].write(whole.getvalue()[: len(whole.getvalue()) // 2])
            given[1].flush()
            die()
            given[1].seek(0)
        if moment == "before":
            die()
        result = real(*given, **more)
        if moment == "after":
            die()
        return result

    setattr(owner, name, struck)


def owner_of(place: str) -> tuple[Any, str]:
    """`(TrainState, "begin")` of `sat.training.state.TrainState.begin`."""
    parts = place.split(".")
    module = next(k for k in range(len(parts) - 1, 0, -1) if parts[k - 1].islower())
    owner = import_module(".".join(parts[:module]))
    for part in parts[module:-1]:
        owner = getattr(owner, part)
    return owner, parts[-1]


def main() -> None:
    where, nth, signals = json.loads(sys.argv[1])
    kill_itself_at(Strike(where, nth, tuple(signals)))
    sys.argv = ["sat", *sys.argv[2:]]
    from sat.run import main as run

    run()


if __name__ == "__main__":
    main()
