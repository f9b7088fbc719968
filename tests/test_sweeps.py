"""Sweeps over processes and machines: who takes which GPU, what is shared, what a kill costs."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, start
from messages import FINISHED, RESUMED
from test_run import metrics, same_outcome

from sat import sweep
from sat.acceleration.device import find_device
from sat.errors import Busy, Fault, Stopped
from sat.evaluation import results
from sat.loggers import screen
from sat.rundir import lock, record
from sat.rundir.result import Alarm, AttackResult, CheckpointResult, RunResult

DEADLINE = 600  # seconds: on a busy machine a process takes its time to begin


def until(happens, process=None):
    """Waits for something true and returns it."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := happens():
            return found
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.poll()}: {process.communicate()}")
        time.sleep(0.02)
    if process is not None:
        process.terminate()
    pytest.fail("waited in vain")


def trained(root: Path, rows: int = 2) -> list[Path]:
    """Runs that are being trained, by the lines of their metrics."""
    return [
        path.parent
        for path in root.glob("*/metrics.jsonl")
        if path.read_text().count("\n") >= rows and not (path.parent / "result.json").exists()
    ]


def holder(run: Path) -> int:
    return int(re.match(r"process (\d+)", (run / "lock").read_text())[1])


# GPUs and the screen ------------------------------------------------------------------------------


def test_processes_side_by_side_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    taken = [str(find_device("auto", seat)) for seat in range(7)]
    assert taken == [f"cuda:{n}" for n in (0, 1, 2, 0, 1, 2, 0)]
    assert str(find_device("auto")) == "cuda:0"
    assert str(find_device("cuda:1", 2)) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(find_device("auto", 5)) == "cpu"


SIT = "from sat import sweep; print(sweep.seat(), sweep.seat(), flush=True); input()"


def sit(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env=os.environ | {"SAT_SWEEP_DIR": str(folder)},
    )  # fmt: skip


def test_the_seat_of_a_killed_process_is_free_again(tmp_path):
    sitting = [sit(tmp_path) for _ in range(3)]
    seats = [process.stdout.readline().split() for process in sitting]
    assert sorted(seats) == [["0", "0"], ["1", "1"], ["2", "2"]]
    sitting[1].kill()
    sitting[1].wait()
    sitting.append(sit(tmp_path))
    assert sitting[-1].stdout.readline().split() == seats[1]
    for process in sitting:
        process.kill()
        process.communicate()


def test_every_line_of_a_job_beside_others_says_which(capfd, monkeypatch):
    for handler in list(screen.log.handlers):
        screen.log.removeHandler(handler)
    screen.set_up()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    screen.label("job 3")
    try:
        screen.log.info("\nfirst\nsecond")
        screen.log.warning("a fault")
        assert screen.Progress("training", 10).bar is None  # bars would tear each other
    finally:
        screen.label("")
    screen.log.info("plain")
    out, err = capfd.readouterr()
    assert out == "job 3 | first\njob 3 | second\nplain\n" and err == "job 3 | ! a fault\n"


# one run, several processes -----------------------------------------------------------------------


def test_who_does_not_wait_is_told_who_runs_it(tmp_path):
    mine = record.Record(root=str(tmp_path))
    with record.claim(mine, "run", "seed: 0\n"):
        with pytest.raises(Busy, match=rf"run: process {os.getpid()} on .* runs it already"):
            with record.claim(mine, "run", "seed: 0\n", wait=False):
                pass
    with record.claim(mine, "run", "seed: 0\n", wait=False) as run:
        assert run.directory == tmp_path / "run"


def test_a_sweep_leaves_to_another_what_that_is_at(sat, ran, tmp_path):
    """Started twice, on one machine or two, it is shared: what is locked comes last."""
    root = tmp_path / "outputs"
    (ran.run / "result.json").unlink()
    log = ran.run / "log.txt"
    log.write_text("")
    ended = []
    with record.claim(record.Record(root=str(root)), ran.run.name, "") as run:
        lock = next(f for f in os.listdir("/proc/self/fd") if _is_open(f, run.directory / "lock"))
        copy = os.dup(int(lock))  # holds it on after the end of this block

    def release():
        until(lambda: list(root.glob("*-s1-*/result.json")))
        ended.append(log.read_text())
        os.close(copy)

    other = threading.Thread(target=release)
    other.start()
    done = sat("-m", "seed=0,1", root=root)
    other.join()
    assert done.code == 0, done.err
    assert ended == [""]  # nothing of seed=0 was done before seed=1 had ended
    assert done.out.count("put off to the end of the sweep") == 1
    assert done.out.count("\njob 1 of 2") == 2 and done.out.count("\njob 2 of 2") == 1
    table = done.out[done.out.rindex("job  ") :]
    assert "-  " not in table.split("\n", 2)[2] and len(done.runs) == 2


def _is_open(descriptor: str, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/self/fd/{descriptor}"), os.stat(path))
    except OSError:
        return False


# worker processes ---------------------------------------------------------------------------------

LONG = ["schedule.epochs=2000", "validation.every=100"]
JOBLIB = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "device=cpu"]


def test_a_sweep_that_is_stopped_saves_every_job(tmp_path):
    process = start(tmp_path, *JOBLIB, *LONG, "seed=0,1,2")
    root = tmp_path / "outputs"
    until(lambda: len(trained(root)) == 2, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143 and "Traceback" not in out + err, err
    assert "stopping 2 jobs" in err and len([*root.glob("*-*")]) == 2  # the third did not begin
    for run in root.glob("*-*"):
        last = torch.load(run / "checkpoints/last.pt", weights_only=True)["step"]
        assert last >= metrics(run)[-1]["step"] > 0
        assert "stopped by SIGTERM" in (run / "log.txt").read_text()
        assert not sweep.is_alive(holder(run))
    for job in (1, 2):
        assert f"job {job} | ! stopped by SIGTERM; the same command goes on from here" in err
        assert f"! job {job} (seed={job - 1}): stopped by SIGTERM" in out


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv(sweep.FOLDER, str(tmp_path))
    monkeypatch.setattr(sweep, "SAVING", 5.0)
    return tmp_path


def broken():
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    raise TerminatedWorkerError("A worker process managed by the executor was ...\n... SIGKILL(-9)")


def job(number: int, message: str = "", **more) -> dict:
    return {"job": number, "overrides": [], "code": 0, "message": message, **more}


def test_a_sweep_goes_on_after_a_killed_worker_for_as_long_as_jobs_end(ledger, caplog):
    passes = []

    def app():
        sweep.note(job(len(passes), sweep.RUNNING if len(passes) == 2 else ""))
        passes.append(1)
        broken()

    with pytest.raises(sweep.Fault, match="was killed .* twice without a job's end between"):
        sweep.run(app)
    assert len(passes) == 3  # two jobs ended; the third did not


@pytest.mark.parametrize("at", ["begins", "ends"])
def test_a_sweep_whose_notes_are_gone_is_no_success(at, sat, monkeypatch):
    """Somebody tidies the folder of temporary files: a job that failed may be among the lost."""
    notes = []

    def note(job, real=sweep.note):
        notes.append(job)
        if at == "begins" and len(notes) == 2:
            shutil.rmtree(sweep._folder())
        real(job)
        if at == "ends" and job["job"] == 2 and sweep.has_ended(job):
            shutil.rmtree(sweep._folder())

    monkeypatch.setattr(sweep, "note", note)
    done = sat("-m", "seed=0,1", "attack.eps=-1")
    assert done.code == 1 and "is gone, with what became of each job" in done.err.splitlines()[-1]


def test_a_note_that_finds_no_room_is_told(ledger, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Fault, match=r"^TMPDIR: \S+ can't be written \(No space left on device\)"):
        sweep.note({"job": 1})


def test_what_has_ended_is_not_asked_again(ledger):
    codes = {"": 0, "a fault": 1, "refused": 2, sweep.PUT_OFF: 0, sweep.RUNNING: 1, "stopped": 140}
    for number, (message, code) in enumerate(codes.items()):
        sweep.note(job(number, message) | {"code": code})
    assert [sweep.has_ended(sweep.before(n)) for n in range(6)] == [1, 1, 1, 0, 0, 0]
    assert sweep.before(6) is None  # a job of a queue that was stopped stops no other


def test_nothing_begins_once_a_worker_was_stopped(ledger, monkeypatch):
    monkeypatch.setattr(sweep, "is_worker", lambda: True)
    sweep.note(job(0, "stopped by SIGTERM") | {"code": 143})
    with pytest.raises(SystemExit) as stopped:
        sweep.before(1)
    assert stopped.value.code == 143


def test_what_was_begun_afresh_is_not_begun_afresh_again(sat, ran, monkeypatch):
    """A requeued job goes on, whatever its command line says."""
    monkeypatch.setattr(
        sweep, "before", lambda number: job(0, "stopped by SIGUSR2") | {"code": 140}
    )
    again = sat("record.fresh=true")
    assert again.code == 0 and FINISHED in again.out
    assert again.runs == ran.runs and not (again.root / ".replaced").exists()


ORPHAN = """
import os, signal, sys, time
from sat import sweep
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
if os.fork() == 0:
    sweep.follow_the_command_line()
    if sys.argv[1] == "idle":
        print("begun", flush=True)
        time.sleep(60)
    with sweep.at_work():
        print("begun", flush=True)
        sweep._alone.wait(60)
        time.sleep(0.3)
        print("saved", flush=True)
    with sweep.at_work():
        print("another job", flush=True)
os.wait()
"""


@pytest.mark.parametrize("state, said", [("idle", set()), ("working", {"saved"})])
def test_a_worker_ends_soon_after_its_command_line(state, said, tmp_path):
    """Whatever a signal's handler does; what had been sent to it is not begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, state], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"SAT_SWEEP_DIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    process.kill()
    began = time.monotonic()
    with process.stdout as out:
        assert {*out.read().splitlines()} - {"told"} == said  # to the end of its worker
    assert time.monotonic() - began < 0.75 * sweep.SAVING
    process.wait()


def test_who_waited_for_a_run_that_is_finished_by_then_tells_nothing_again(sat, ran, monkeypatch):
    """Two sweeps that overlap: no second row of hyper-parameters, no second picture."""
    before = {path: path.read_bytes() for path in ran.run.rglob("*") if path.is_file()}
    finished, asked = results.finished, []

    def once(spec):
        asked.append(spec)
        return finished(spec) if len(asked) > 1 else None

    monkeypatch.setattr(results, "finished", once)
    assert sat().code == 0 and len(asked) == 2
    after = {path: path.read_bytes() for path in ran.run.rglob("*") if path.is_file()}
    changed = {path.name for path in before | after if before.get(path) != after.get(path)}
    assert changed <= {"lock", "log.txt"}


def test_a_launcher_that_fails_is_one_line(sat, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = sat("-m", "hydra/launcher=slurm", "seed=0,1")
    assert done.code == 1 and len(done.err.splitlines()) == 1, done.err
    assert "slurm cluster" in done.err and "Traceback" not in done.err


# clusters -----------------------------------------------------------------------------------------

LIMIT = ["schedule.epochs=30", "validation.every=10", "schedule.ema=0.99", "device=cpu"]


def test_a_job_at_its_time_limit_is_requeued_and_goes_on(sat, tmp_path):
    """What Slurm sends before the time limit, to a job of submitit's that no cluster runs."""
    pytest.importorskip("submitit", reason="needs the extra sweep")
    folder = tmp_path / "jobs"
    local = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30",
             f"hydra.launcher.submitit_folder={folder}/%j"]  # fmt: skip
    process = start(tmp_path, *local, *LIMIT)
    (run,) = until(lambda: trained(tmp_path / "outputs", 3), process)
    task = holder(run)
    os.kill(task, signal.SIGUSR2)
    out, err = process.communicate(timeout=2 * DEADLINE)
    (told,) = folder.glob("*/*_log.out")
    assert process.returncode == 0, out + err + told.read_text()
    assert RESUMED in told.read_text() and holder(run) != task
    errors = told.with_name(told.name.replace(".out", ".err")).read_text()
    assert "stopped by SIGUSR2; the same command goes on" in errors and "Traceback" not in errors
    steps = [row["step"] for row in metrics(run) if "train/loss" in row]
    assert steps == sorted(set(steps))
    whole = sat(*LIMIT, root=tmp_path / "whole")
    same_outcome(run, whole.run)


def test_what_the_queue_is_asked_for(sat, tmp_path, monkeypatch):
    """The script that Slurm gets, from a `sbatch` that only keeps it."""
    pytest.importorskip("submitit", reason="needs the extra sweep")
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/asked.sh\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = sat("-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "seed=0,1,2")
    assert done.code == 1 and "Traceback" not in done.err
    asked = (tmp_path / "asked.sh").read_text()
    for line in ("--signal=USR2@120", "--time=240", "--requeue", "--array=0-2%3", "--partition=gpu",
                 "--gpus-per-node=1", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in asked, asked
    assert f"{done.root}/.slurm/" in asked and not done.runs


def test_a_job_tells_its_place_and_how_long_the_sweep_will_take(sat, ledger, monkeypatch):
    monkeypatch.setenv(sweep.COUNTS, json.dumps({"seed": 4, "+attack.steps": 2, "activation": 1}))
    assert sweep.place(1) == "job 1 of 8"
    now = time.time()
    done = {"code": 0, "message": "", "overrides": []}
    sweep.note(done | {"job": 1, "began": now - 900, "known": True})  # found finished: no pace
    sweep.note(done | {"job": 2, "began": now - 50})
    sweep.note(done | {"job": 3, "began": now - 25})
    assert sweep.place(4) == "job 4 of 8, 2m05s left"  # 50 s for two, and five are left
    words = ["seed=1", "attack.steps=2", "activation=relu", "schedule.epochs=3"]
    assert sweep.varying(1, words) == " ".join(words)
    assert sweep.varying(4, words) == "seed=1 attack.steps=2"
    monkeypatch.delenv(sweep.COUNTS)
    assert sweep.varying(4, words) == " ".join(words), "of a search nobody knows beforehand"


def test_the_jobs_of_a_sweep_are_counted_before_the_first(sat):
    done = sat("-m", "seed=0,1", "attack.steps=range(1,4)", "attack.eps=0.1", "activation=relu")
    assert done.code == 2 and [*re.findall(r"job (\d) of 6", done.out)] == [*"123456"]


# a search -----------------------------------------------------------------------------------------


def test_optuna_searches_by_the_score(sat):
    pytest.importorskip("optuna", reason="needs the extra optuna")
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
              "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=0",
              "schedule.learning_rate=interval(0.05, 0.8)"]  # fmt: skip
    done = sat(*search, "schedule.epochs=1")
    assert done.code == 0 and len(done.runs) == 3, done.err
    again = sat(*search, "schedule.epochs=1")
    assert again.code == 0 and again.runs == done.runs and again.out.count(FINISHED) == 3


def test_a_search_never_sees_the_test_set():
    from sat.evaluation.settings import Evaluation
    from sat.evaluation.telling import headline

    entry = AttackResult(accuracy=0.9, ci95=(0.8, 0.95), images=50)
    last = CheckpointResult(step=1, epoch=1.0, clean=entry, robust={"pgd20": entry})
    weights = RunResult(
        identity={},
        name="run", hash="0", status="finished", seed=0, environment={}, dataset={"name": "digits"},
        test_images=50, attack=None, choices={"threads": 1}, steps=1, images=32, wall_seconds=1.0,
        images_per_second=None, last=last, best=None,
    )  # fmt: skip
    for chosen, score in (("robust", 0.25), ("clean", 0.5)):
        best = replace(last, held_out={"clean": 0.5, "robust": 0.25},
                       selected_by=f"{chosen} accuracy on held-out training images")  # fmt: skip
        assert headline(replace(weights, best=best), Evaluation())["score"] == score
    assert headline(weights, Evaluation())["score"] is None
    own, other, training = (Alarm("flat", "-", checkpoint=c) for c in ("best", "last", None))
    told = replace(weights, best=last, alarms=[own, replace(other, name="square"), training])
    assert headline(told, Evaluation())["alarms"] == "1"


def test_a_run_of_two_jobs_is_told_once_unless_they_measured_otherwise():
    job = {"overrides": [], "code": 0, "message": "", "name": "outputs/a", "clean": "90.0"}
    jobs = [
        {**job, "job": n, "robust": robust} for n, robust in ((1, "50.0"), (2, "50.0"), (3, "41.0"))
    ]
    lines = sweep.summary(jobs).splitlines()
    assert lines[3].split("  ")[-1].strip() == "(as the others) (the same run as job 1)"
    assert "41.0" in lines[4] and "the same run" not in lines[4]
    other = sweep.summary([{**jobs[0], "attack": "pgd"}, {**jobs[1], "attack": "strong"}])
    assert "the same run" not in other
    for attacks, head in (
        ((), "robust %"),
        (("pgd", "pgd"), "pgd %"),
        (("pgd", "strong"), "robust %"),
    ):
        for job, attack in zip(jobs, attacks, strict=False):
            job["attack"] = attack
        assert f" {head} " in sweep.summary(jobs).splitlines()[0]


def test_a_sweeps_table_has_short_keys_where_no_two_end_alike():
    words = ["activation.alpha=1", "dataset.eps=8", "attack.eps=4", "+attack@evaluation.a.b=pgd"]
    jobs = [{"job": n, "overrides": words[:n], "code": 0, "message": ""} for n in (1, 4)]
    lines = [line.split("  ")[-1] for line in sweep.summary(jobs).splitlines()]
    assert lines[0] == "differs in" and lines[3] == " ".join(words[1:])
    jobs[0]["overrides"] = []
    assert " alpha=1 dataset.eps=8 attack.eps=4 +attack@eval" in sweep.summary(jobs)


def test_the_rule_of_a_sweeps_table_is_as_wide_as_the_table(monkeypatch):
    jobs = [{"job": n, "overrides": [f"activation={n}"], "code": 0, "message": ""} for n in (1, 2)]
    lines = sweep.summary(jobs).splitlines()
    assert len(lines[1]) == max(map(len, lines)) and set(lines[1]) == {"-", " "}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    assert "activation=2" in sweep.summary(jobs)


@pytest.mark.parametrize(
    "codes, code", [([], 0), ([0, 0], 0), ([0, 2], 2), ([1, 2], 1), ([0, 143], 1), ([-9, 2], 1)]
)
def test_a_sweep_ends_with_the_worst_of_its_jobs(codes, code):
    assert sweep.exit_code([{"code": each} for each in codes]) == code


def test_who_stops_a_run_that_began_afresh_is_told_not_to_begin_it_once_more(sat, monkeypatch):
    def stopped(*given, **more):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("sat.run.execute", stopped)
    for words, more in (([], False), (["record.fresh=true"], True)):
        done = sat(*words)
        assert done.code == 143 and "goes on" in done.err
        assert ("without record.fresh=true" in done.err) == more


def test_who_waited_for_a_run_that_was_moved_away_locks_its_successor(tmp_path):
    run, got = tmp_path / "run", []
    held = lock.take(run, wait=True)
    waiting = threading.Thread(target=lambda: got.append(lock.take(run, wait=True)))
    waiting.start()
    time.sleep(0.3)
    run.rename(tmp_path / "aside")
    held.close()
    waiting.join(60)
    assert os.path.samestat(os.fstat(got[0].file.fileno()), os.stat(run / "lock"))
    got[0].close()
