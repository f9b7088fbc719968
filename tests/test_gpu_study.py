"""The study on a GPU: its plan, and the command that goes on with it, of lines that stand in."""

import importlib
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from sat.config import CONF, check, resolve
from sat.errors import Refused


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' modules by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.fixture
def plan(scripts):
    return scripts("gpu_plan")


@pytest.fixture
def study(scripts):
    return scripts("gpu_study")


def places(plan, **more):
    return plan.Places(Path("D"), Path("outputs"), photographs=Path("D/photos"), **more)


def whole(plan, seeds=(0, 1, 2)):
    return plan.lines(places(plan), plan.PARTS, seeds)


# the plan -----------------------------------------------------------------------------------------


def test_the_first_seed_of_every_row_comes_before_the_next_and_the_main_table_first(plan):
    lines = whole(plan)
    assert len({line.name for line in lines}) == len(lines)
    per_seed, first, later = 2 * len(plan.SWEEPS), len(plan.FIRST), len(plan.LATER)
    assert [line.part for line in lines[: first + 1]] == ["speed"] * first + ["projection"]
    end = first + 1 + per_seed
    assert {line.part for line in lines[end : end + later]} == {"speed"} and first + later == 10
    swept = lines[first + 1 : end] + lines[end + later :]
    assert [f"seed={n // per_seed}" for n in range(len(swept))] == [
        next(word for word in line.words if word.startswith("seed=")) for line in swept
    ]
    names = [line.name for line in swept]
    assert names[:4] == ["cifar10-activations-pgd1-s0", "cifar10-activations-pgd1-s0-strong",
                         "cifar10-attack_steps-s0", "cifar10-attack_steps-s0-strong"]  # fmt: skip
    assert [name.replace("-s0", "-s1") for name in names[:per_seed]] == names[per_seed:][:per_seed]


def test_parts_and_jobs_choose(plan):
    chosen = plan.lines(places(plan, jobs=1), ["photographs", "projection"], [5])
    assert {line.part for line in chosen} == {"photographs", "projection"} and len(chosen) == 5
    shared = [line for line in whole(plan) if "hydra.launcher.n_jobs=3" in line.words]
    assert {line.part for line in shared} == {"cifar10", "overfitting"}
    alone = plan.lines(places(plan, jobs=1), plan.PARTS, [0])
    assert not any("launcher" in line.command for line in alone)


def jobs(line, ends=(0, -1)) -> list:
    """The first and the last run of a line's sweep, checked."""
    words = line.words[3:]
    words = [word.split("=", 1) for word in words if not word.startswith(("-", "hydra"))]
    many = {key: value for key, value in words if "," in value and value[0] not in "'["}
    fixed = [f"{key}={value}" for key, value in words if key not in many]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose("config", fixed, return_hydra_config=True).hydra
        swept = {key: str(value) for key, value in hydra.sweeper.params.items()}
        swept = {key: v for key, v in swept.items() if key not in dict(words)} | many
        ends = [{key: v.split(",")[end] for key, v in swept.items()} for end in ends]
        runs = [compose("config", [*fixed, *map("=".join, job.items())]) for job in ends]
    return [check({**resolve(run), "choices": {"dataset": "d", "activation": "a"}}) for run in runs]


def test_every_sweep_composes_and_its_strong_line_trains_nothing(plan):
    lines = [line for line in whole(plan, [0]) if "sat.run" in line.words]
    epochs = set()
    for line, strong in zip(lines[::2], lines[1::2], strict=True):
        photographs = line.part == "photographs"
        runs, (again,) = jobs(line), jobs(strong, ends=[-1])
        assert strong.name == f"{line.name}-strong"
        assert again.hash == runs[1].hash != runs[0].hash, line.name
        assert set(again.evaluation.attacks) == {"strong"} and again.evaluation.limit == 1000
        for run in runs:
            assert list(run.evaluation.attacks) == ["pgd200" if photographs else "pgd20"]
            assert run.evaluation.limit is None
            assert run.record.checkpoint_minutes == 2 and str(run.record.root) == "outputs"
            assert run.attack.eps == (4 if photographs else 8)
            assert run.config["dataset"]["root"] == ("D/photos" if photographs else "D")
            epochs.add((line.part, run.schedule.epochs, run.schedule.decay))
    assert epochs == {("cifar10", 30, "step"), ("photographs", 100, "step"),
                      ("overfitting", 30, "step"), ("overfitting", 120, "step")}  # fmt: skip


def test_the_rehearsal_of_a_sweep_is_small_and_its_strong_line_trains_nothing(plan):
    lines = [plan.rehearsed(line) for line in whole(plan, [0]) if "sat.run" in line.words]
    kinds = {line.part: n for n, line in enumerate(lines) if not line.name.endswith("strong")}
    for part, n in kinds.items():
        runs, (again,) = jobs(lines[n]), jobs(lines[n + 1], ends=[-1])
        assert again.hash == runs[1].hash
        lengths = [run.schedule.epochs for run in runs]
        assert lengths == ([1, 2] if part == "overfitting" else [1, 1])
        assert all(run.evaluation.limit == 8 for run in (*runs, again))
        assert {run.config["dataset"]["limit"] for run in (*runs, again)} == {48}


def test_every_benchmark_and_the_projection_are_taken(plan, scripts, monkeypatch):
    benchmark, cases, forecast = map(scripts, ("benchmark", "cases", "forecast"))
    timed = [line for line in whole(plan) if line.part == "speed"]
    for line in (*timed, *map(plan.rehearsed, timed)):
        assert line.words[0] == "scripts/benchmark.py" and not line.resumes
        own = benchmark.arguments(line.words[1:])
        assert own.compile == (line in timed) and len(own.parts) == 1
        case = cases.case_of(own.words)
        assert case.batch in ((128, 256, 512) if line in timed else (2,))
    assert {line.words[-1] for line in timed} == {
        f"outputs/benchmark/{network}-{part}" for part, network in plan.FIRST + plan.LATER
    }
    words = [{"RATE": "200", "RATE_FP32": "40"}.get(w, w) for w in plan.projection().words]
    monkeypatch.setattr(sys, "argv", words)
    for key in ("training", "evaluation", "gpus"):
        monkeypatch.setattr(forecast.RATES, key, None)
    rest = forecast.arguments()
    assert (forecast.RATES.training, forecast.RATES.evaluation, forecast.RATES.gpus) == (200, 40, 8)
    assert rest == ["-m", "experiment=activations", "dataset=imagenet", "hydra/launcher=basic"]


def test_the_projection_waits_for_its_rate(plan, study, tmp_path):
    line = plan.projection()
    own = study.Study([line], tmp_path)
    assert plan.rates(tmp_path) is None and own.next(set()) is None
    assert line.measured(tmp_path) == line
    folder = tmp_path / "benchmark" / plan.PROJECTED
    folder.mkdir(parents=True)
    rates = [("sat", 1, 150.0), ("sat, compiled", 1, 212.34), ("sat, compiled", 10, 999.0),
             ("sat, float32 NCHW", 1, 38.0), ("published loop", 1, 500.0)]  # fmt: skip
    rows = [
        {"loop": loop, "k": k, "flop_per_second": {"median": 1e12 * tflops}}
        for loop, k, tflops in rates
    ]
    choices = {row["loop"]: {"precision": "bf16"} for row in rows}
    choices["sat, float32 NCHW"] = {"precision": "fp32"}
    found = {"steps": {"rows": rows, "choices": choices}}
    (folder / "benchmark.json").write_text(json.dumps(found))
    assert own.next(set()).words[-6:] == ("--tflops", "212", "--tflops-fp32", "38", "--gpus", "8")


def test_runs_are_shared_out_to_the_gpu_that_is_free_first(scripts):
    forecast = scripts("forecast")
    assert forecast.shared_out([3, 1, 1, 1, 2], 2) == 5 and forecast.shared_out([3, 1], 8) == 3


# the command --------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(plan, study, tmp_path, monkeypatch):
    """`stand_ins({name: code}, resumes=False)`: a study of lines that run Python code."""
    monkeypatch.setattr(study, "ROOT", tmp_path)

    def build(codes: dict[str, str], **more):
        made = [plan.Line(name, "cifar10", ("-c", code), **more) for name, code in codes.items()]
        return study.Study(made, tmp_path)

    return build


def went(tmp_path) -> list[str]:
    return (tmp_path / "went").read_text().split()


def go(name: str, code: int = 0) -> str:
    return f"import sys; print('{name}', file=open('went', 'a')); sys.exit({code})"


def saves(then: str = "open('ready', 'w').close()", deaf: bool = False) -> str:
    """The first time it waits to be stopped, and saves; the second time it ends."""
    return f"""
import os, signal, sys, time
print("saves", file=open("went", "a"))
if os.path.exists("saved"): sys.exit(0)
def stop(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(9))  # twice is once too often
    open("saved", "w").close()
    time.sleep(0.3)
    sys.exit(143)
signal.signal(signal.SIGTERM, {"signal.SIG_IGN" if deaf else "stop"})
{then}
while True: time.sleep(0.01)
"""


@pytest.fixture
def over_when_ready(study, tmp_path, monkeypatch):
    """The time is over when a line is at work."""
    clock = lambda: 100.0 if (tmp_path / "ready").exists() else 0.0  # noqa: E731
    monkeypatch.setattr(study, "time", types.SimpleNamespace(monotonic=clock))


def states(own) -> list[str]:
    return [record["state"] for _, record in own.now()]


def test_when_the_minutes_are_over_a_line_saves_itself_and_goes_on_next_time(
    study, stand_ins, over_when_ready, tmp_path
):
    own = stand_ins({"a": go("a"), "b": saves(), "c": go("c")})
    assert study.carry_on(own, 50.0) == 143
    assert went(tmp_path) == ["a", "saves"] and (tmp_path / "saved").exists()
    assert states(own) == ["done", "under way", "left"]
    assert "left: c" in own.summary() and "1 done, 1 under way, 0 failed, 1 left" in own.summary()
    assert study.carry_on(own, 50.0) == 143 and went(tmp_path) == ["a", "saves"]  # no time at all
    (tmp_path / "ready").unlink()
    assert study.carry_on(own, 50.0) == 0
    assert went(tmp_path) == ["a", "saves", "saves", "c"] and set(states(own)) == {"done"}


def test_what_is_done_starts_no_process_and_another_line_of_its_name_does(
    study, stand_ins, tmp_path
):
    own = stand_ins({"a": go("a"), "b": go("b")})
    assert study.carry_on(own, float("inf")) == 0
    assert study.carry_on(own, float("inf")) == 0 and went(tmp_path) == ["a", "b"]
    changed = stand_ins({"a": go("A"), "b": go("b")})
    assert study.carry_on(changed, float("inf")) == 0 and went(tmp_path) == ["a", "b", "A"]
    (tmp_path / "study/b.json").write_text("{")  # damaged: once more, at worst
    assert study.carry_on(changed, float("inf")) == 0 and went(tmp_path)[-1] == "b"


def test_a_line_that_fails_is_told_and_keeps_no_other_waiting(study, stand_ins, tmp_path, capsys):
    own = stand_ins({"a": go("a", 1), "b": go("b"), "c": go("c", 2)})
    assert study.carry_on(own, float("inf")) == 1
    assert states(own) == ["failed", "done", "failed"]
    assert "! a failed" in own.summary() and "! c failed" in own.summary()
    assert "$ python -c" in (tmp_path / "study/a.log").read_text()
    assert "exit code 2" in capsys.readouterr().out
    again = stand_ins({"a": go("a", 1), "b": go("b"), "c": go("c", 2), "d": go("d")})
    assert study.carry_on(again, float("inf")) == 1
    assert went(tmp_path) == ["a", "b", "c", "d", "a", "c"]  # what failed comes last


def test_a_killed_call_goes_on_and_what_begins_anew_comes_last(study, stand_ins, tmp_path):
    own = stand_ins({"a": go("a"), "b": go("b")})
    (tmp_path / "study").mkdir()
    own.note(own.plan[0], state="under way", seconds=300.0)  # as a kill leaves it
    assert own.next(set()).name == "a"
    anew = stand_ins({"a": go("a"), "b": go("b")}, resumes=False)
    assert anew.next(set()).name == "b"
    assert study.carry_on(anew, float("inf")) == 0 and went(tmp_path) == ["b", "a"]
    assert own.record(own.plan[0])["seconds"] >= 300


def test_a_signal_reaches_the_line_once_and_a_deaf_one_is_killed(
    study, stand_ins, tmp_path, monkeypatch
):
    ask = "os.kill(os.getppid(), signal.SIGINT)"  # as Ctrl-C does
    own = stand_ins({"a": saves(f"{ask}; {ask}"), "b": go("b")})
    assert study.carry_on(own, float("inf")) == 130
    assert went(tmp_path) == ["saves"] and states(own) == ["under way", "left"]
    assert own.record(own.plan[0])["code"] == 143
    (tmp_path / "saved").unlink()
    monkeypatch.setattr(study, "SAVING", 0.1)
    own = stand_ins({"d": saves("os.kill(os.getppid(), signal.SIGTERM)", deaf=True)})
    assert study.carry_on(own, float("inf")) == 143 and states(own) == ["under way"]
    assert own.record(own.plan[0])["code"] == -signal.SIGKILL


def test_a_dry_run_prints_what_can_be_typed_and_writes_nothing(tmp_path):
    for folder in ("data/photos/train", "data/photos/val", "data/other/train"):
        (tmp_path / folder).mkdir(parents=True)
    words = [sys.executable, "scripts/gpu_study.py", str(tmp_path / "data"), "--dry-run"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "out"), "--seeds", "7"], cwd=ROOT, text=True,
        capture_output=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line[0] != "#"]
    assert all(line.startswith(("python -m sat.run -m ", "python scripts/")) for line in commands)
    assert sum("seed=7" in line for line in commands) == len(commands) - 11
    assert f"dataset.root={tmp_path}/data/photos dataset" in done.stdout
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused(study, tmp_path, capsys):
    assert study.main([str(tmp_path / "none")]) == 2
    with pytest.raises(Refused, match="photographs need one folder .* here none"):
        study.photographs_in(tmp_path)
    assert study.main([str(tmp_path)]) == 2 and "--parts speed" in capsys.readouterr().err
    for words in (["--parts", "sped"], ["--minutes", "0"], ["--jobs", "0"], ["--seeds", "x"]):
        with pytest.raises(SystemExit) as refused:
            study.main([str(tmp_path), *words])
        assert refused.value.code == 2
