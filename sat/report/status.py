"""What `sat-report --status` prints: runs, their state, and how far each came. Needs no torch."""

from pathlib import Path

from sat.errors import first_line
from sat.loggers.screen import cut, duration
from sat.rundir.reading import metrics, runs_in, status
from sat.rundir.result import RunResult
from sat.rundir.untrusted import read_yaml


def states(root: Path) -> str:
    """Two lines a run: its name, and below it state, accuracies, time and alarms; then how many
    runs are in each state."""
    lines, found = [], []
    for name, run in runs_in(root).items():
        try:
            state, told, alarms = state_of(run)
        except Exception as error:  # of any kind: anybody may have written to these files
            state, told, alarms = "damaged", first_line(error), []
        found.append(state)
        raised = f", ALARM: {', '.join(dict.fromkeys(alarms))}" if alarms else ""
        lines += [name, f"    {state}, {told}{raised}"]
    counts = ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found))
    return "\n".join([*lines, counts])


def state_of(run: Path) -> tuple[str, str, list[str]]:
    """State, what there is to say, and the names of the alarms. Raises errors of any kind where a
    file is not as a run writes it."""
    state, result = status(run)
    alarms = [str(alarm["name"]) for alarm in result.get("alarms", ())]
    if state == "finished":
        found = RunResult.from_json(result)
        shares = next((part.accuracies for part in found.measured.values()), {})
        told = ", ".join(f"{name} {each.accuracy:.1%}" for name, each in shares.items())
        spent = found.wall_seconds
        trained = f", trained in {duration(spent)}" if spent else ""  # a file of weights
        stopped = ", an evaluation stopped" * (run / "flags" / "partial").exists()
        return state, f"{told or 'no accuracies'}{trained}{stopped}", alarms
    rows = metrics(run)[0]
    alarms = [str(row["alarm"]) for row in rows if "alarm" in row] + alarms
    if fault := result.get("error"):
        return state, cut(" ".join(str(fault).split())), alarms
    rows = [row for row in rows if row.get("epoch")]
    if not rows:
        return state, "no metrics yet", alarms
    epochs = read_yaml(run / "config.yaml")["schedule"]["epochs"]
    epoch, seconds = rows[-1]["epoch"], rows[-1].get("seconds")
    told = f"epoch {round(epoch, 2):g} of {epochs:g}"
    if held_out := next((row for row in reversed(rows) if "val/robust" in row), None):
        told += f", held out {held_out['val/clean']:.1%} clean {held_out['val/robust']:.1%} robust"
    kept = [run / "checkpoints" / f"{name}.pt" for name in ("last", "previous")]
    if state == "stopped" and not any(path.exists() for path in kept):
        return state, f"{told}, no checkpoint: begins again", alarms
    if result:
        done = "being measured" if state == "running" else "an evaluation stopped"
        return state, f"{told}, {done}", alarms
    if seconds and epoch >= 0.05 * epochs:  # a guess before
        told += f", {duration(seconds * (epochs / epoch - 1))} left"
    return state, told, alarms
