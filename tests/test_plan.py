"""The plan for a GPU: its list of lines, and the loop that goes on with it."""

import importlib.util
import shlex
import signal
import subprocess
import sys
import time
import types
from functools import cache

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from sat.bench import benchmark
from sat.bench.case import Case, case_of
from sat.config import CONF, check, composed, resolve

SCRIPT = ROOT / "scripts/gpu_plan.py"
SPEC = importlib.util.spec_from_file_location("gpu_plan", SCRIPT)
plan = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plan)


def budgets(seeds: str = "0,1,2") -> dict[tuple[str, ...], float]:
    """The lines of the list, as they run, and the minutes of each."""
    own = plan.arguments(["D", "--seeds", seeds])
    return {tuple(shlex.split(line)): minutes for line, minutes in own.plan.items()}


def listed(seeds: str = "0") -> list[list[str]]:
    return [[*line] for line in budgets(seeds)]


# the list -----------------------------------------------------------------------------------------


def test_the_first_seed_of_every_row_comes_before_the_next():
    once, twice = listed(), listed("0,1")
    assert twice[: len(once)] == once
    again = [[word.replace("seed=0", "seed=1") for word in line] for line in once]
    assert twice[len(once) :] == [line for line in again if "seed=1" in line]
    assert len({*map(tuple, twice)}) == len(twice)
    assert "experiment=activations" in once[10] and once[1][0] == "scripts/benchmark.py"


def test_equality_comes_first_and_eight_minutes_are_enough_for_the_times_that_have_aims():
    (first, minutes), *timed = [*budgets().items()][:4]
    assert first[:2] == ("-m", "pytest") and "tests/test_capture.py" in first
    assert all(line[0] == "scripts/benchmark.py" for line, _ in timed)
    assert minutes + sum(each for _, each in timed) <= 8


@cache
def swept(experiment: str, dataset: str) -> dict[str, str]:
    """What an experiment's file sweeps, the first value of each."""
    given = [f"experiment={experiment}", f"dataset={dataset}"]
    found = compose("config", given, return_hydra_config=True).hydra.sweeper.params
    return {key: str(value).split(",")[0] for key, value in found.items()}


def first_job(line: list[str]):
    """The run that the sweep of a line begins with, checked."""
    words = dict(w.split("=", 1) for w in line[3:] if not w.startswith(("-m", "hydra")))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = swept(words["experiment"], words["dataset"]) | words
        given = [f"{key}={value.split(',')[0]}" for key, value in own.items()]
        run = check(resolve(compose("config", given)))
    vars(run)["fingerprint"] = None  # the images are not here
    return run


def test_every_slice_composes_and_ends_with_strong_within_eight_minutes():
    """One line of those that differ in the activation alone stands for them."""
    minutes = budgets()
    lines = [line for line in listed() if "sat.run" in line and "-m" in line[2:]]
    assert sum(minutes[tuple(line)] > 8 for line in lines) == 2, "depth and width"
    told = [[word for word in line if not word.startswith("hydra")] for line in lines]
    assert len({*map(tuple, told)}) == len(lines)
    kinds = {tuple(w for w in line if not w.startswith("activation=")): line for line in lines}
    seen = set()
    for line in kinds.values():
        run = first_job(line)
        photographs = run.attack.eps == 4
        assert set(run.evaluation.attacks) == {"strong", "pgd20"} and run.evaluation.limit == 1000
        assert run.evaluation.attacks["pgd20"].steps == 20
        assert run.record.checkpoint_minutes == 2 and str(run.record.root) == "outputs"
        assert run.config["dataset"]["root"] == ("D/photographs" if photographs else "D")
        assert run.schedule.epochs == 100 or not photographs
        assert run.hash not in seen or "experiment=depth" in line, "its base is the main table's"
        seen.add(run.hash)


def test_the_speed_run_is_one_run_measured_in_three_ways():
    lines = (line for line in listed() if "experiment=speedrun" in line)
    found = [Case(composed(words[2:])).spec for words in lines]
    assert len({spec.hash for spec in found}) == 1 and found[0].schedule.epochs == 15
    attacks = [set(spec.evaluation.attacks) for spec in found]
    assert attacks == [{"pgd50_10"}, {"pgd20"}, {"strong"}]
    assert found[1].evaluation.limit is None and found[1].evaluation.restarts == 1


def test_every_benchmark_is_taken():
    minutes = budgets()
    timed = [line for line in listed() if line[0] == "scripts/benchmark.py"]
    for words in timed:
        own = benchmark.arguments(words[1:])
        assert case_of(own.words).batch in (128, 256, 512)
        assert own.budget < 60 * minutes[tuple(words)], "it ends by itself before it is stopped"


# the loop -----------------------------------------------------------------------------------------


@pytest.fixture
def go(tmp_path, monkeypatch):
    """`go({code: minutes}, seconds)`: carries on with lines of Python code; their states."""
    monkeypatch.chdir(tmp_path)

    def call(codes: dict[str, float], seconds: float = float("inf")):
        lines = {f"-c {shlex.quote(code)}": minutes for code, minutes in codes.items()}
        return plan.carry_on(lines, tmp_path / "out/plan.json", seconds)

    call.went = lambda: (tmp_path / "went").read_text().split()
    return call


def does(name: str, code: int = 0) -> str:
    return f"import sys; print('{name}', file=open('went', 'a')); sys.exit({code})"


SAVES = """
import os, signal, sys, time
print("saves", file=open("went", "a"))
if os.path.exists("saved"): sys.exit(0)
def stop(*_):
    open("saved", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
open("ready", "w").close()
for _ in range(600): time.sleep(0.1)  # a signal just before a sleep waits for its end
"""  # the first time it waits to be stopped, and saves; the second time it ends


@pytest.fixture
def over_when_ready(tmp_path, monkeypatch):
    """A line's time, and that of the call if it has one, is over when the line is at work."""
    ready = tmp_path / "ready"

    class Impatient(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            self.late = ready.exists()
            super().__init__(*args, **kwargs)

        def wait(self, timeout=None):
            while timeout is not None and timeout < plan.SAVING and self.poll() is None:
                if ready.exists() and not self.late:
                    raise subprocess.TimeoutExpired("", timeout)
                time.sleep(0.01)
            return super().wait(timeout)

    monkeypatch.setattr(plan.subprocess, "Popen", Impatient)
    clock = types.SimpleNamespace(monotonic=lambda: 100.0 if ready.exists() else 0.0)
    monkeypatch.setattr(plan, "time", clock)


@pytest.mark.parametrize("seconds", [50.0, float("inf")])
def test_when_the_time_is_over_a_line_saves_itself_and_goes_on_next_time(
    go, over_when_ready, tmp_path, seconds
):
    """The time of the call, or the line's own: then the next lines have theirs."""
    lines = {does("a"): 1, SAVES: 1, does("c"): 1}
    rest = "left" if seconds == 50 else "done"
    assert go(lines, seconds) == ["done", "stopped", rest] and (tmp_path / "saved").exists()
    assert go(lines, 0.0) == ["done", "stopped", rest]  # no time at all
    (tmp_path / "ready").unlink()
    assert go(lines) == ["done"] * 3
    assert sorted(go.went()) == ["a", "c", "saves", "saves"]


def test_what_is_done_starts_no_process_and_a_changed_line_does(go, tmp_path):
    go({does("a"): 1, does("b"): 1})
    assert go({does("a"): 2, does("B"): 1}) == ["done", "done"] and go.went() == ["a", "b", "B"]
    for damaged in ("{", "[1]"):  # once more, at worst
        (tmp_path / "out/plan.json").write_text(damaged)
        assert go({does("a"): 1}) == ["done"] and go.went()[-1] == "a"


def test_a_line_that_fails_keeps_no_other_waiting(go, tmp_path):
    lines = {does("a", 1): 1, does("b"): 1, does("c", 2): 1}
    assert go(lines) == ["failed", "done", "failed"]
    assert "$ python -c" in (tmp_path / "out/plan.log").read_text()
    go(lines | {does("d"): 1})
    assert go.went() == ["a", "b", "c", "d", "a", "c"]  # what failed comes last


def test_a_line_that_does_not_stop_is_killed(go, monkeypatch):
    monkeypatch.setattr(plan, "SAVING", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    assert go({deaf: 0.005}) == ["stopped"]


def test_a_line_that_others_kill_has_failed(go):
    """The memory was full, say: to go on with it would end there again, and never end."""
    assert go({"import os; os.kill(os.getpid(), 9)": 1}) == ["failed"]


@pytest.mark.parametrize(("words", "told"), [
    (["my images"], "my images: stands in command lines"),
    ([".", "--out", "a;b"], "a;b: stands in command lines"),
    ([".", "--out", str(SCRIPT)], f"{SCRIPT}: stands in command lines; name a folder"),
])  # fmt: skip
def test_places_that_are_no_words_are_refused(words, told, capsys):
    with pytest.raises(SystemExit):
        plan.main([*words, "--dry-run"])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_line_and_the_command(tmp_path, number, code):
    asks = SAVES.replace("for _", f"os.kill(os.getppid(), {int(number)})\nfor _")
    (tmp_path / "asks.py").write_text(asks)
    (tmp_path / "list.txt").write_text("1: asks.py\n1: -c pass\n")
    done = subprocess.run([sys.executable, SCRIPT, ".", "--plan", "list.txt"], cwd=tmp_path,
                          timeout=60)  # fmt: skip
    assert done.returncode == code and (tmp_path / "saved").exists()


def test_the_command_tells_what_is_left_and_how_it_ended(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "on_signals", lambda handler: None)
    (tmp_path / "list.txt").write_text("# a remark\n\n1: -c pass\n1: -c {seed}\n")
    call = lambda *more: plan.main([".", "--plan=list.txt", "--seeds", "0,x", *more])  # noqa: E731
    assert call("--dry-run") == 0 and not (tmp_path / "outputs").exists()
    assert capsys.readouterr().out == "python -c pass\npython -c 0\npython -c x\n"
    assert call("--minutes", "0") == 143 and "0 done, 0 stopped, 0 failed, 3 left" in (
        capsys.readouterr().out
    )
    assert call() == 1 and "2 done, 0 stopped, 1 failed, 0 left" in capsys.readouterr().out
    assert call("--seeds", "0") == 0


def test_what_has_ended_is_brought_back_in_one_small_file(ran, tmp_path, capsys):
    assert plan.carry_on({"-c pass": 1}, tmp_path / "outputs/plan.json", 60) == ["done"]
    (line,) = (tmp_path / "outputs/runs.jsonl").read_text().splitlines()
    assert '"name":"digits-' in line and len(line) < 20_000
    assert plan.carry_on({"-c 1": 1}, tmp_path / "nothing/plan.json", 60) == ["done"]
    assert "holds no run" in capsys.readouterr().out


@pytest.mark.parametrize(("line", "told"), [
    ("5", "no words"),
    ("ten: -c pass", "'ten'"), ("1: -c {jobs}", "'jobs'"), ("-c pass", "'-c pass'"),
    ("1: -c {}", "index 0"), ("1: -c {data.foo}", "'foo'"), ("1: -c {data:d}", "format string"),
    ("1: -c 'pass", "No closing quotation"),
])  # fmt: skip
def test_bad_input_is_refused(tmp_path, capsys, line, told):
    named = f"`{line}`: "
    for name, why in (("list.txt", named), ("list.txt", told), ("none.txt", "No such file")):
        (tmp_path / "list.txt").write_text(f"1: -c pass\n{line}\n")
        with pytest.raises(SystemExit) as end:
            plan.main([".", "--plan", str(tmp_path / name)])
        (error,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and why in error and "write `minutes: words`" in error
