"""What `sat-report --status` prints: the runs below a folder, their state, and how far each came.
Needs no torch."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from sat.loggers.screen import cut, duration
from sat.report.runs import FAULTS, metrics, name_in, one_line, runs_in, status
from sat.rundir.untrusted import read_yaml


def states(root: Path) -> str:
    """Two lines a run, which fit any terminal: its name, and below it state, accuracies and time;
    then how many runs are in each state."""
    lines, found = [], []
    for run in runs_in(root):
        try:
            state, told = state_of(run)
        except FAULTS as error:
            state, told = "damaged", one_line(error)
        found.append(state)
        lines += [
            name_in(run, root),
            textwrap.fill(
                f"{state}, {told}", 79, initial_indent="    ", subsequent_indent="    ",
                break_long_words=False, break_on_hyphens=False,
            ),
        ]  # fmt: skip
    counts = ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found))
    return "\n".join([*lines, counts])


def state_of(run: Path) -> tuple[str, str]:
    """State, and what there is to say. Raises one of FAULTS where a file is not as a run writes
    it."""
    state, result = status(run)
    if state == "finished":
        best = next(result[k] for k in ("best", "last") if "clean" in (result.get(k) or {}))
        shares = {"clean": best["clean"], **best["robust"]}
        told = ", ".join(f"{name} {each['accuracy']:.1%}" for name, each in shares.items())
        stopped = ", an evaluation stopped" * (run / "flags" / "partial").exists()
        names = [alarm["name"] for alarm in result.get("alarms", ())]
        seconds = result["wall_seconds"]
        trained = f", trained in {duration(seconds)}" if seconds else ""  # a file of weights
        return state, f"{told}{trained}{stopped}{alarms(names)}"
    every = metrics(run)[0]
    names = [str(row["alarm"]) for row in every if "alarm" in row]
    if fault := result.get("error"):
        names += [alarm["name"] for alarm in result.get("alarms", ())]
        return state, cut(" ".join(str(fault).split())) + alarms(names)
    rows = [row for row in every if row.get("epoch")]
    if not rows:
        return state, f"no metrics yet{alarms(names)}"
    epochs = read_yaml(run / "config.yaml")["schedule"]["epochs"]
    epoch, seconds = rows[-1]["epoch"], rows[-1].get("seconds")
    told = f"epoch {round(epoch, 2):g} of {epochs:g}"
    if held_out := next((row for row in reversed(rows) if "val/robust" in row), None):
        told += f", held out {held_out['val/clean']:.1%} clean {held_out['val/robust']:.1%} robust"
    if seconds and epoch >= 0.05 * epochs:  # a guess before
        told += f", {duration(seconds * (epochs / epoch - 1))} left"
    return state, told + alarms(names)


def alarms(names: Sequence[str]) -> str:
    """The alarms of a run, each once."""
    return f", ALARM: {', '.join(dict.fromkeys(names))}" if names else ""
