"""A few of the kills of `make soak`, and that it would see a difference."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT

from sat.rundir import checkpoint


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import soak

    return soak


def test_killed_at_three_points_and_started_again_equals_never_killed(soak, tmp_path, monkeypatch):
    arguments = [*soak.FOLDER, *soak.RESNET, "dataset.workers=2", "schedule.ema=0.9",
                 "schedule.accumulate=2", "schedule.decay=one_cycle", "schedule.epochs=4",
                 "evaluation.masking_checks=0"]  # fmt: skip
    monkeypatch.setitem(soak.CASES, "few", arguments)
    soak.photographs(tmp_path / "photographs")
    alone = soak.Alone("few", tmp_path / "few/alone")
    alone.run()
    strikes = [
        soak.Strike("half a checkpoint written", 5, ("SIGKILL",)),
        soak.Strike("between the two renames", 4, ("SIGKILL",)),
        soak.Strike("flags written, not renamed", 1, ("SIGTERM",)),
    ]
    kills = soak.struck(alone, strikes, tmp_path / "few/killed", print)
    assert [kill.wrong for kill in kills] == [[]] * 3
    assert [kill.code for kill in kills] == [-signal.SIGKILL, -signal.SIGKILL, 143]
    steps = [kill.step for kill in kills]
    assert 0 < steps[0] < steps[1] < steps[2] == 18


def test_every_point_of_a_strike_is_there(soak):
    import strikes

    for where, (place, moment, _) in strikes.POINTS.items():
        owner, name = strikes.owner_of(place)
        assert callable(getattr(owner, name)), where
        assert moment in ("before", "after", "half")


def test_soak_draws_the_same_from_a_seed_and_names_its_cases(soak, monkeypatch, capsys):
    import random

    drawn = [soak.strikes_of("digits", random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    seen = {s.where for seed in range(200) for s in soak.strikes_of("x", random.Random(seed))}
    assert seen == {*soak.POINTS, soak.MOMENT, soak.STARTING}
    monkeypatch.setattr("sys.argv", ["soak", "--only", "nothing"])
    assert soak.main() == 2 and "digits constant ema" in capsys.readouterr().err


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


def test_differences_are_seen(soak, sat, tmp_path):
    whole = sat().run
    for change, said in SAID.items():
        run = shutil.copytree(whole, tmp_path / change.__name__)
        assert soak.differences(whole, run) == []
        change(run)
        assert soak.differences(whole, run) == said, change.__name__
    a_line(run)
    assert soak.differences(whole, run) == ["metrics.jsonl differs", f"{run}: a step twice"]
