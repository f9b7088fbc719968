"""A few of what `make soak` tries, and that it would see a difference."""

import json
import random
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from sat.rundir import checkpoint

from . import files, kills, lines, strikes
from .equality import differences
from .strikes import COMMAND, MOMENT, STARTING, WORKER, Strike


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        yield


def alone_in(folder, sat, arguments) -> kills.Alone:
    """The command in this process, left alone."""
    done = sat(*arguments, tiny=False, root=folder / "outputs")
    assert done.code == 0, done.err
    return kills.Alone("few", folder, arguments)


def test_killed_at_three_points_and_started_again_equals_never_killed(sat, tmp_path, monkeypatch):
    arguments = [*kills.FOLDER, *kills.RESNET, "dataset.workers=2", "schedule.ema=0.9",
                 "schedule.accumulate=2", "schedule.decay=one_cycle", "schedule.epochs=4",
                 "evaluation.masking_checks=0"]  # fmt: skip
    kills.photographs(tmp_path / "photographs")
    (tmp_path / "few/alone").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "few/alone")
    alone = alone_in(tmp_path / "few/alone", sat, arguments)
    found = kills.struck(alone, [
        Strike("half a checkpoint written", 5, ("SIGKILL",)),
        Strike("between the two renames", 4, ("SIGKILL",)),
        Strike("flags written, not renamed", 1, ("SIGTERM",)),
    ], tmp_path / "few/killed")  # fmt: skip
    assert [kill.wrong for kill in found] == [[]] * 3
    assert [kill.code for kill in found] == [-signal.SIGKILL, -signal.SIGKILL, 143]
    steps = [kill.step for kill in found]
    assert 0 < steps[0] < steps[1] < steps[2] == 18


def test_a_sweep_survives_its_own_death_and_that_of_a_worker(sat, tmp_path):
    arguments = kills.CASES["sweep of 6, 2 workers"]
    arguments = [*arguments[:-1], "schedule.epochs=10", "seed=0,1,2"]
    alone = alone_in(tmp_path / "alone", sat, [w for w in arguments if "launcher" not in w])
    alone.arguments = arguments
    strikes_ = [Strike(COMMAND, 0.0, ("SIGKILL",)), Strike(WORKER, 0.0, ("SIGKILL",))]
    found = kills.struck(alone, strikes_, tmp_path / "torn")
    assert [kill.wrong for kill in found] == [[]] * 2
    assert [kill.code for kill in found] == [-signal.SIGKILL, 0]


def test_every_point_of_a_strike_is_there():
    for where, (place, moment, _) in strikes.POINTS.items():
        owner, name = strikes.owner_of(place)
        assert callable(getattr(owner, name)), where
        assert moment in ("before", "after", "half")


def test_strikes_are_the_same_from_a_number_and_of_every_kind():
    drawn = [kills.strikes_of("digits", random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for case, kinds in (("x", {*strikes.POINTS, MOMENT, STARTING}),
                        ("sweep", {WORKER, COMMAND, MOMENT})):  # fmt: skip
        seen = (s.where for seed in range(200) for s in kills.strikes_of(case, random.Random(seed)))
        assert {*seen} == kinds


@pytest.mark.parametrize("number", range(30))
def test_any_command_line_is_answered(number):
    assert lines.attempt(number) == (1, [])


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return files.Files(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("kind", files.KINDS)
def test_damaged_files_are_told_or_do_no_harm(kind, damaged):
    assert damaged.attempt(kind, 0) == (1, [])


# differences are seen -------------------------------------------------------------------------


def a_bit(run) -> None:
    state = checkpoint.read(run / "checkpoints/last.pt")
    next(iter(state["model"].values())).view(torch.int32).view(-1)[0] ^= 1
    torch.save(state, run / "checkpoints/last.pt")


def a_line(run) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines, lines[0]]))


def a_point(run) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run)) as writer:
        writer.add_scalar("train/loss", 1.0, 32)


def a_verdict(run) -> None:
    path = run / "flags/last-pgd20.npz"
    with np.load(path) as file:
        flags = dict(file)
    flags["fell"][0] += 1
    np.savez(path, **flags)


def a_number(run) -> None:
    result = json.loads((run / "result.json").read_text())
    result["last"]["robust"]["pgd20"]["accuracy"] += 0.02
    (run / "result.json").write_text(json.dumps(result))


def a_file(run) -> None:
    (run / "checkpoints/.last.pt.tmp").write_bytes(b"half")


def times(run) -> None:
    result = json.loads((run / "result.json").read_text())
    result |= {"wall_seconds": 1.5, "environment": {}}
    (run / "result.json").write_text(json.dumps(result))


SAID = {
    a_bit: ["checkpoints/last.pt differs"], a_point: ["TensorBoard differs"],
    a_verdict: ["flags/last-pgd20.npz differs"], a_number: ["result.json differs"],
    a_file: ["files differs"], times: [],
}  # fmt: skip


def test_differences_are_seen(ran, tmp_path):
    whole = ran.run
    before = kills.times_of(whole.parents[1])
    for change, said in SAID.items():
        run = shutil.copytree(whole, tmp_path / change.__name__)
        assert differences(whole, run) == []
        change(run)
        assert differences(whole, run) == said, change.__name__
    a_line(run)
    assert differences(whole, run) == ["metrics.jsonl differs", f"{run}: a step twice"]
    a_number(whole)  # a run that has finished is touched again
    assert kills.times_of(whole.parents[1]).items() - before.items()


def test_the_tests_that_the_page_on_reliability_names_are_there():
    tests = {path.name: path.read_text() for path in (kills.ROOT / "tests").rglob("test_*.py")}
    page = (kills.ROOT / "docs/reliability.md").read_text()
    for word in {*re.findall(r"`([\w/.:]*test_[\w/.:]*\*?)`", page)}:
        file, _, name = word.rpartition("::") if "::" in word else ("", "", word)
        if word.endswith(".py"):
            assert word.rpartition("/")[2] in tests, word
            continue
        places = [tests[file.rpartition("/")[2]]] if file else tests.values()
        assert any(f"def {name.rstrip('*')}" in text for text in places), word
