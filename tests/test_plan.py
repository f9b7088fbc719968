"""The plan for a GPU: its list of lines, and the loop that goes on with it."""

import shlex
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from sat.bench import benchmark, forecast, plan
from sat.bench.case import case_of
from sat.config import CONF, check, resolve
from sat.errors import Refused

LIST = ROOT / "scripts/gpu_plan.txt"
PLACES = {"data": "D", "photographs": "D/photos", "out": "outputs", "jobs": 3}


def listed(seeds=(0,), places=PLACES) -> list[list[str]]:
    return [shlex.split(line) for line in plan.lines(LIST.read_text(), places, seeds)]


# the list -----------------------------------------------------------------------------------------


def test_the_first_seed_of_every_row_comes_before_the_next():
    once, twice = listed(), listed((0, 1))
    assert twice[: len(once)] == once
    again = [[word.replace("seed=0", "seed=1") for word in line] for line in once]
    assert twice[len(once) :] == [line for line in again if "seed=1" in line]
    assert len({*map(tuple, twice)}) == len(twice)
    assert "experiment=activations" in once[3] and once[0][0] == "scripts/benchmark.py"
    photographs = [line for line in once if "dataset.root=D/photos" in line]
    left = listed(places={k: v for k, v in PLACES.items() if k != "photographs"})
    assert left == [line for line in once if line not in photographs] and len(photographs) == 4


def first_jobs(*lines: list[str]) -> list:
    """The run that the sweep of each line begins with, checked; what they sweep is the same."""
    found, swept = [], {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for line in lines:
            words = dict(w.split("=", 1) for w in line[3:] if not w.startswith(("-m", "hydra")))
            words = {key: value.split(",")[0] for key, value in words.items()}
            given = [f"{key}={value}" for key, value in words.items()]
            if not swept:
                hydra = compose("config", given, return_hydra_config=True).hydra
                swept = {
                    key: str(value).split(",")[0] for key, value in hydra.sweeper.params.items()
                }
            own = [f"{key}={value}" for key, value in swept.items() if key not in words]
            found.append(check(resolve(compose("config", [*own, *given]))))
            vars(found[-1])["fingerprint"] = None  # the images are not here
    return found


def test_every_sweep_composes_and_its_strong_line_trains_nothing():
    lines = [line for line in listed() if "sat.run" in line]
    assert len(lines) == 20
    for line, strong in zip(lines[::2], lines[1::2], strict=True):
        run, again = first_jobs(line, strong)
        photographs = run.attack.eps == 4
        assert again.hash == run.hash, line
        assert set(again.evaluation.attacks) == {"strong"} and again.evaluation.limit == 1000
        assert list(run.evaluation.attacks) == ["pgd200" if photographs else "pgd20"]
        assert run.record.checkpoint_minutes == 2 and str(run.record.root) == "outputs"
        assert run.config["dataset"]["root"] == ("D/photos" if photographs else "D")
        assert not photographs or run.schedule.epochs == 100


def test_every_benchmark_and_the_projection_are_taken():
    timed = [line[1:] for line in listed() if line[0] == "scripts/benchmark.py"]
    minutes = plan.lines(LIST.read_text(), PLACES, [0])
    for words in timed:
        own = benchmark.arguments(words)
        assert own.compile and case_of(own.words).batch in (128, 256, 512)
        budget = minutes[" ".join(["scripts/benchmark.py", *words])]
        assert own.budget < 60 * budget, "it ends by itself before it is stopped"
    (projection,) = (line[1:] for line in listed() if line[0] == "scripts/forecast.py")
    own, words = forecast.arguments(projection)
    assert own.gpus == 8 and words == ["-m", "experiment=activations", "dataset=imagenet"]
    assert f"--out {own.measured}" in " ".join(sum(timed, [])), "rates that are measured before"


# the loop -----------------------------------------------------------------------------------------


@pytest.fixture
def go(tmp_path, monkeypatch):
    """`go({code: minutes}, seconds)`: carries on with lines of Python code; their ledger."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background: ignored

    def call(codes: dict[str, float], seconds: float = float("inf")):
        lines = {f"-c {shlex.quote(code)}": minutes for code, minutes in codes.items()}
        ledger = plan.Ledger(tmp_path / "out/plan.json")
        call.code = plan.carry_on(lines, ledger, seconds)
        call.summary = plan.summary(lines, ledger)
        return [ledger.state(line) for line in lines]

    call.went = lambda: (tmp_path / "went").read_text().split()
    yield call
    signal.signal(signal.SIGINT, before)


def does(name: str, code: int = 0) -> str:
    return f"import sys; print('{name}', file=open('went', 'a')); sys.exit({code})"


def saves(then: str = "", deaf: bool = False) -> str:
    """The first time it waits to be stopped, and saves; the second time it ends."""
    return f"""
import os, signal, sys, time
print("saves", file=open("went", "a"))
if os.path.exists("saved"): sys.exit(0)
def stop(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(9))  # twice is once too often
    open("saved", "w").close()
    time.sleep(0.2)
    sys.exit(143)
signal.signal(signal.SIGTERM, {"signal.SIG_IGN" if deaf else "stop"})
open("ready", "w").close()
{then}
while True: time.sleep(0.01)
"""


@pytest.fixture
def over_when_ready(tmp_path, monkeypatch):
    """The time is over when a line is at work."""
    clock = lambda: 100.0 if (tmp_path / "ready").exists() else 0.0  # noqa: E731
    stand_in = types.SimpleNamespace(monotonic=clock, sleep=lambda seconds: None)
    monkeypatch.setattr(plan, "time", stand_in)


@pytest.mark.parametrize(("minutes", "seconds"), [(99, 50.0), (0.5, float("inf"))])
def test_when_the_time_is_over_a_line_saves_itself_and_goes_on_next_time(
    go, over_when_ready, tmp_path, minutes, seconds
):
    """The time of the call, or the line's own: then the next lines have theirs."""
    lines = {does("a"): 99, saves(): minutes, does("c"): 99}
    rest = ["left"] if seconds == 50 else ["done"]
    assert go(lines, seconds) == ["done", "stopped", *rest] and go.code == 143
    assert (tmp_path / "saved").exists() and "1 stopped, 0 failed" in go.summary
    assert go(lines, 0.0) == ["done", "stopped", *rest] and go.code == 143  # no time at all
    assert go.went() == ["a", "saves", "c"][: 3 - (rest == ["left"])]
    (tmp_path / "ready").unlink()
    assert go(lines, seconds) == ["done"] * 3 and go.code == 0
    assert sorted(go.went()) == ["a", "c", "saves", "saves"]


def test_what_is_done_starts_no_process_and_a_changed_line_does(go, tmp_path):
    go({does("a"): 1, does("b"): 1})
    assert go({does("a"): 2, does("B"): 1}) == ["done", "done"] and go.went() == ["a", "b", "B"]
    (tmp_path / "out/plan.json").write_text("{")  # damaged: once more, at worst
    assert go({does("a"): 1}) == ["done"] and go.went()[-1] == "a"


def test_a_line_that_fails_is_told_and_keeps_no_other_waiting(go, tmp_path):
    lines = {does("a", 1): 1, does("b"): 1, does("c", 2): 1}
    assert go(lines) == ["failed", "done", "failed"] and go.code == 1
    assert go.summary.count("! failed: python -c") == 2
    assert "$ python -c" in (tmp_path / "out/plan.log").read_text()
    go(lines | {does("d"): 1})
    assert go.went() == ["a", "b", "c", "d", "a", "c"]  # what failed comes last


def test_a_signal_reaches_the_line_once_and_a_deaf_one_is_killed(go, tmp_path, monkeypatch):
    ask = "os.kill(os.getppid(), signal.SIGINT)"  # as Ctrl-C does
    assert go({saves(f"{ask}; {ask}"): 1, does("b"): 1}) == ["stopped", "left"]
    assert go.code == 130 and go.went() == ["saves"] and (tmp_path / "saved").exists()
    (tmp_path / "saved").unlink()
    monkeypatch.setattr(plan, "SAVING", 0.1)
    deaf = saves("os.kill(os.getppid(), signal.SIGTERM)", deaf=True)
    assert go({deaf: 1}) == ["stopped"] and go.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_dry_run_prints_what_can_be_typed_and_writes_nothing(tmp_path):
    for folder in ("data/photos/train", "data/photos/val", "data/other/train"):
        (tmp_path / folder).mkdir(parents=True)
    words = [sys.executable, "scripts/gpu_plan.py", str(tmp_path / "data"), "--dry-run"]
    done = subprocess.run([*words, "--out", str(tmp_path / "out"), "--seeds", "7"], cwd=ROOT,
                          text=True, capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line[0] != "#"]
    assert all(line.startswith(("python -m sat.run -m ", "python scripts/")) for line in commands)
    assert sum("seed=7" in line for line in commands) == 20
    assert f"dataset.root={tmp_path}/data/photos dataset" in done.stdout
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused(tmp_path, capsys):
    assert plan.main(LIST, [str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    for name in ("a", "b"):
        for part in ("train", "val"):
            (tmp_path / name / part).mkdir(parents=True)
    assert plan.main(LIST, [str(tmp_path)]) == 2
    assert "more than one folder of photographs" in capsys.readouterr().err
    with pytest.raises(Refused, match="write `minutes: words`"):
        plan.lines("ten: -c pass", {}, [0])
