"""The whole command in two processes that torchrun started, against the same in one or untouched:
another evaluation, an evaluation that is killed, a training that diverges, dropout resumed."""

import json
import shutil
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from conftest import TINY, command, made
from crash.equality import differences
from messages import RESUMED
from test_distributed import ENVIRONMENT, NETWORK, finished, started, torchrun, weights

NETWORK = [word for word in NETWORK if not word.startswith("model.width")]
SMALL = [word for word in TINY if not word.startswith("model.width")] + NETWORK
# Of the two attacks one gives its verdicts image by image, and its images are shared out; the other
# gives them by batches, which one process takes. MaskingChecks are the first process's affair.
PGD = [
    "evaluation.limit=24", "evaluation.checkpoints=[last]",
    "evaluation.search=exact",  # by PGD.__call__, where a process can be killed
    "+attack@evaluation.attacks.pgd=pgd", "evaluation.attacks.pgd.steps=3",
]  # fmt: skip
BOTH = [
    "evaluation=autoattack", *PGD, "evaluation.masking_checks=8", "evaluation.batch_size=6",
    "evaluation.attacks.autoattack.eps=60",
    "evaluation.attacks.autoattack.version=custom",
    "evaluation.attacks.autoattack.attacks=[apgd-ce]",
]  # fmt: skip


def told(folder: Path, *words: str) -> tuple[int, str, str]:
    """What becomes of a command in `folder`: its exit code, and what it says."""
    return finished(warm.Command([*words], folder, ENVIRONMENT))


def run_in(folder: Path) -> Path:
    (config,) = folder.glob("outputs/*/config.yaml")
    return config.parent


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one process, with its own evaluation."""
    return made(tmp_path_factory.mktemp("trained"), *SMALL, "schedule.epochs=6")


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """The same, after another evaluation in one process that nobody disturbs."""
    run = copied(trained, tmp_path_factory.mktemp("measured"))
    return made(run.parent, f"evaluate={run}", *BOTH)


def copied(run: Path, folder: Path) -> Path:
    return shutil.copytree(run, folder / "outputs" / run.name)


# evaluations -------------------------------------------------------------------------------------


def test_another_evaluation_is_that_of_one_process(trained, measured, tmp_path):
    run = copied(trained, tmp_path)
    code, out, err = told(tmp_path, *torchrun(2, *command(f"evaluate={run}", *BOTH)[1:]))
    assert code == 0 and out.count("results in") == 1, err
    assert differences(run, measured) == []
    robust = result_of(run)["last"]["robust"]
    for name in ("pgd", "autoattack"):  # the measure can tell verdicts apart
        assert robust[name]["environment"]["processes"] == 2 and robust[name]["images"] == 24
        assert robust[name]["accuracy"] < 1 - 4 / 24
    assert robust["pgd"]["accuracy"] > 0 and robust["autoattack"]["attacks"]["apgd-ce"]["felled"]


DEADLY = """
import os, signal, sys
from pathlib import Path
from sat.evaluation import evaluator
from sat.attacks import PGD
from sat.run import main

whom, notes = sys.argv.pop(1), Path(sys.argv.pop(1))
rank, plain, batches = os.environ["RANK"], PGD.__call__, 0
evaluator.KEEP_EVERY = 0.0

def die():
    agent = os.getppid()
    others = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    victims = {"one": [], "all": [*map(int, others), agent]}[whom]
    for process in [*(each for each in victims if each != os.getpid()), os.getpid()]:
        os.kill(process, signal.SIGKILL)

def attack(self, model, x, y, rng=None, progress=None):
    global batches
    if rng is not None and rng.key:  # else it is for the pictures
        batches += 1
        if rank == "1" and batches == 2 and whom != "none":
            die()
        with open(notes, "a") as file:
            print(*rng.rows.tolist(), file=file)
    return plain(self, model, x, y, rng, progress)

PGD.__call__ = attack
main()
"""


def decided(run: Path) -> set[int]:
    """The images that a killed evaluation has kept a verdict of its attack for."""
    known = set()
    for path in (run / "flags/partial").glob("*.npz"):
        with np.load(path) as file:
            attacked = (file["fell"] >= 0) | (file["passed"] > 0)
            known |= {*file["indices"][attacked].tolist()}
    return known


def test_an_evaluation_that_is_killed_twice_goes_on_where_it_was(trained, measured, tmp_path):
    """First both processes and torchrun, then one process, whom the others follow."""
    run, program = copied(trained, tmp_path), tmp_path / "deadly.py"
    program.write_text(DEADLY)
    known: list[set[int]] = [set()]
    for whom in ("all", "one", "none"):
        notes = tmp_path / f"attacked-{whom}"
        words = ["evaluation=clean", *PGD, "evaluation.batch_size=2", "evaluation.masking_checks=0"]
        code, _, err = told(tmp_path, *torchrun(2, str(program), whom, str(notes),
                                                f"evaluate={run}", *words))  # fmt: skip
        assert code == {"all": -signal.SIGKILL, "one": 1, "none": 0}[whom], err
        attacked = [*map(int, notes.read_text().split())]
        assert len(attacked) == len({*attacked}) and known[-1].isdisjoint(attacked)
        if whom != "none":
            known.append(decided(run))
            assert known[-2] < known[-1] <= known[-2] | {*attacked}
            # The survivor is told by the connection that broke, or by torchrun's SIGTERM before.
            assert whom == "all" or "the same command goes on from" in err, err
    one, two = (np.load(each / "flags/last-pgd.npz") for each in (run, measured))
    for key in ("fell", "passed", "indices", "clean", "robust"):
        assert np.array_equal(one[key], two[key]), key
    assert len({*one["indices"]}) == 24 and not (run / "flags/partial").exists()
    assert known[-1] | {*attacked} == {*one["indices"][one["clean"]].tolist()}
    results = [result_of(each)["last"]["robust"]["pgd"] for each in (run, measured)]
    assert len({(each["accuracy"], each["images"]) for each in results}) == 1


# trainings ---------------------------------------------------------------------------------------


def test_a_training_that_diverges_ends_as_that_of_one_process(sat, tmp_path):
    given = ["schedule.learning_rate=1e30", "schedule.warmup_epochs=0", "schedule.epochs=6",
             "record.checkpoint_minutes=0"]  # fmt: skip
    one = sat(*SMALL, *given, tiny=False, root=tmp_path / "one")
    assert one.code == 1 and one.result["status"] == "failed", one.err
    code, out, err = finished(started(tmp_path, 2, *given))
    run = run_in(tmp_path)
    result = result_of(run)
    assert code == one.code and err.count(result["error"]) == 1, err
    for key in ("status", "error", "steps", "skipped_steps"):
        assert result[key] == one.result[key], key
    assert all(value.isfinite().all() for value in weights(run).values())
    parts = [torch.load(path, weights_only=True) for path in run.glob("faults/*-process-?.pt")]
    assert sum(len(part["images"]) for part in parts) == 32 and len(parts) == 2
    assert "Traceback" not in out and "record.fresh=true" not in err


STOPS = """
import os, signal
from sat.run import main
from sat.training import memory

update = memory.update

def stopped(state, *batch):
    update(state, *batch)
    if state.step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

memory.update = stopped
main()
"""


def test_dropout_resumed_by_as_many_processes_equals_never_stopped(tmp_path):
    """Of whole blocks; beside batch norm, whose statistics are of each process's own images."""
    words = [word for word in TINY if not word.startswith(("model", "evaluation"))]
    words += ["model=timm", "model.name=test_efficientnet", "model.drop_path=0.5",
              "schedule.epochs=1.5", "validation.every=1.5", "validation.limit=8",
              "evaluation=clean", "evaluation.limit=20", "evaluation.masking_checks=0"]  # fmt: skip
    program = tmp_path / "stops.py"
    program.write_text(STOPS)
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    folder.mkdir()
    code, _, err = told(whole, *torchrun(2, *command(*words)[1:]))
    assert code == 0, err
    code, _, err = told(folder, *torchrun(2, str(program), *words))
    assert code and "SIGTERM" in err, err
    code, out, err = told(folder, *torchrun(2, *command(*words)[1:]))
    assert code == 0 and f"{RESUMED} 3 of 6" in out, out + err
    assert differences(run_in(folder), run_in(whole)) == []
    state = torch.load(run_in(whole) / "checkpoints/last.pt", weights_only=True)
    assert not torch.equal(*(process["rng"] for process in state["generators"]))
    result = json.loads((run_in(folder) / "result.json").read_text())
    assert [alarm["name"] for alarm in result["alarms"]].count("separate_batch_norm") == 1


# sweeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeping, rank", [("-m", 0), ("hydra.mode=MULTIRUN", 0), ("-m", 1)])
def test_a_sweep_in_several_processes_is_refused_once(sat, sweeping, rank, monkeypatch):
    """However it is asked for. Who does not tell why waits: torchrun ends all with the first."""
    for key, value in {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(key, value)
    waits: list[float] = []
    monkeypatch.setattr("sat.run.time", types.SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr("sat.run.end", sys.exit)
    done = sat(sweeping, "seed=0,1")
    line = "! -m: is no sweep under torchrun; start torchrun once for each run\n"
    assert (done.code, done.out, done.err) == (2, "", "" if rank else line)
    assert waits == [10] * rank and not done.root.exists()
