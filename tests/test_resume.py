"""What a training goes on from: a checkpoint that fits it, or the one before, or nothing."""

import copy
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from messages import RESUMED
from test_run import same_outcome

from sat import config
from sat.errors import Refused
from sat.models.weights import load
from sat.rundir import checkpoint, untrusted
from sat.training.callbacks import Callbacks
from sat.training.metrics import Metrics
from sat.training.resume import check_state

RUNS: list[Path] = []
AVERAGED = "schedule.ema=0.9"


@pytest.fixture
def whole(sat, tmp_path_factory) -> Path:
    """A finished run of a second; made once."""
    if not RUNS:
        done = sat(AVERAGED, root=tmp_path_factory.mktemp("whole"))
        assert done.code == 0, done.err
        RUNS.append(done.run)
    return RUNS[0]


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """The same run, stopped before it was measured."""
    run = Path(shutil.copytree(whole, tmp_path / "outputs" / whole.name))
    (run / "result.json").unlink()
    return run


def first(held: dict):
    """The value of the first key of a dict, and the key."""
    return next(iter(held.items()))


def put(*path, value):
    """An edit: the value at a path of keys, of which None is the first there."""

    def edit(state: dict) -> None:
        for key in path[:-1]:
            state = state[first(state)[0] if key is None else key]
        key = first(state)[0] if path[-1] is None else path[-1]
        state[key] = value(state[key]) if callable(value) else value

    return edit


def drop(*path):
    def edit(state: dict) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return edit


EDITS = {
    "step": put("step", value=-1), "step beyond": put("step", value=10**9),
    "step text": put("step", value="x"), "step yes": put("step", value=True),
    "choices": drop("choices"), "threads": put("choices", "threads", value=0),
    "parts": put("choices", "accumulate", value=10**9),
    "compile": put("choices", "compile", value="fast"), "fold": put("choices", "fold", value=1),
    "precision": put("choices", "precision", value="fp8"),
    "metrics": put("metrics", "values", value=[0, 0]),
    "rng": put("generators", 0, "rng", value=torch.zeros(3)), "facts": drop("facts", "dataset"),
    "model": put("model", value={}), "model.*": put("model", None, value=0),
    "shape": put("model", "backbone.conv1.weight", value=lambda t: t[None]),
    "nan": put("model", "backbone.conv1.weight", value=lambda t: t * float("nan")),
    "kind": put("model", "backbone.conv1.weight", value=lambda t: t.int()),
    "average": drop("average"), "best": put("callbacks", "best", value=[]),
    "best.model": put("callbacks", "best", "model", value={}),
    "best.score": put("callbacks", "best", "score", value=[1]),
    "optimizer": put("optimizer", value={}), "groups": put("optimizer", "param_groups", value=[]),
    "momentum": put("optimizer", "param_groups", 0, "momentum", value="x"),
    "buffer": put("optimizer", "state", 0, "momentum_buffer", value=lambda t: t.flatten()[:1]),
    "no buffer": put("optimizer", "state", 0, value={"x": 1}),
    "skips": put("skips", "counts", value=lambda t: t[:2]),
    "overfitting": put("callbacks", "overfitting", "best", value=[1]),
    "alarms": put("callbacks", "alarms", value=[1]),
    "seconds": put("callbacks", "seconds", value=None),
    "lengths": put("callbacks", "lengths", "metrics.jsonl", value=-1),
    "scaler": put("scaler", value=[]),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_state_that_does_not_fit_is_told(edit, run):
    state = checkpoint.read(run / "checkpoints/last.pt")
    model, facts = load(run, "last"), state["facts"]
    schedule = config.check(untrusted.read_yaml(run / "config.yaml")).schedule
    check_state(state, facts, model, schedule)
    edited = copy.deepcopy(state)
    edit(edited)
    with pytest.raises(ValueError) as told:
        check_state(edited, facts, model, schedule)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    assert not isinstance(told.value, Refused)
    state["facts"] = {**facts, "hash": "00000000"}
    with pytest.raises(Refused, match="another config"):
        check_state(state, facts, model, schedule)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb", "lookahead_sgd", "rmsproptf"])
def test_what_a_training_writes_fits_it(optimizer, sat):
    kept = sat(f"schedule.optimizer={optimizer}", "schedule.learning_rate=0.01", "model.depth=10",
               "schedule.epochs=0.5")  # fmt: skip
    assert kept.code == 0, kept.err
    state = checkpoint.read(kept.run / "checkpoints/last.pt")
    schedule = config.check(untrusted.read_yaml(kept.run / "config.yaml")).schedule
    model = load(kept.run, "last")
    check_state(state, state["facts"], model, schedule)
    for group in state["optimizer"]["param_groups"]:  # as processes write that share out weights
        group["fused"] = None
    check_state(state, state["facts"], model, schedule)


def test_a_metric_that_is_no_number_keeps_no_run_from_going_on(sat, monkeypatch):
    """A plug-in's, say 0/0 of a batch, in the steps between a log and the stop."""
    words = ["schedule.batch_size=4", "schedule.epochs=2"]  # a log every 2 of 65 steps
    look, plain = Callbacks.look, Metrics.__call__

    def stopped(callbacks, state):
        if state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        look(callbacks, state)

    def broken(metrics, state):
        return {**plain(metrics, state), "mine": (torch.tensor(torch.nan), torch.tensor(1.0))}

    monkeypatch.setattr(Metrics, "__call__", broken)
    with monkeypatch.context() as patch:
        patch.setattr(Callbacks, "look", stopped)
        assert sat(*words).code == 143
    done = sat(*words)
    assert done.code == 0 and RESUMED in done.out + done.err, done.err


@pytest.mark.parametrize("edit", ["step text", "shape"])
def test_a_checkpoint_of_the_wrong_shape_gives_way_to_the_one_before(edit, run, whole, sat):
    last, previous = (run / f"checkpoints/{name}.pt" for name in ("last", "previous"))
    sound = last.read_bytes()
    state = checkpoint.read(last)
    EDITS[edit](state)
    checkpoint.save(last, state)
    damaged = last.read_bytes()
    for other in (None, b"x"):
        if other is not None:
            previous.write_bytes(other)
        refused = sat(AVERAGED, root=run.parent)
        assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
        assert str(last) in refused.err and "record.fresh=true" in refused.err
        assert ("previous.pt too" in refused.err) == (other is not None)
        assert last.read_bytes() == damaged
    previous.write_bytes(sound)
    again = sat(AVERAGED, root=run.parent)
    assert again.code == 0 and "going on from previous.pt" in again.err, again.err
    assert again.err.count("\n") == 1
    same_outcome(again.run, whole)


def test_a_run_that_was_killed_before_a_checkpoint_says_that_it_begins_again(run, whole, sat):
    shutil.rmtree(run / "checkpoints")
    again = sat(AVERAGED, root=run.parent)
    assert again.code == 0
    assert "no checkpoint of an earlier try is there (record.checkpoint_minutes=10)" in again.err
    same_outcome(again.run, whole)


def test_a_checkpoint_with_a_changed_bit_is_damaged(run):
    last = run / "checkpoints/last.pt"
    content = bytearray(last.read_bytes())
    weights = torch.load(last, weights_only=True)["model"].values()
    at = content.find(bytes(max(weights, key=lambda w: w.numel()).untyped_storage()))
    content[at + 100] ^= 1
    last.write_bytes(content)
    assert torch.load(last, weights_only=True)  # torch does not see it
    with pytest.raises(ValueError, match="last.pt: is damaged.*not what was written"):
        checkpoint.read(last)


def test_weights_of_a_file_are_taken_anew_where_their_checkpoint_is_damaged(whole, sat, tmp_path):
    weights = f"evaluate={shutil.copy(whole / 'checkpoints/best.pt', tmp_path / 'w.pt')}"
    asked = [weights, "activation=silu", "model.width=0.0625", "evaluation=clean",
             "evaluation.masking_checks=0", "evaluation.limit=50"]  # fmt: skip
    done = sat(*asked, tiny=False)
    assert done.code == 0, done.err
    for content in (b"x", None):
        (done.run / "result.json").unlink()
        last = done.run / "checkpoints/last.pt"
        checkpoint.save(last, {"facts": 5}) if content is None else last.write_bytes(content)
        again = sat(*asked, tiny=False)
        assert again.code == 0, again.err
        assert again.result["last"]["clean"] == done.result["last"]["clean"]


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_not_filled_up(run, sat):
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:2]))
    assert sat(AVERAGED, root=run.parent).code == 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("content", ["[" * 99999, None], ids=["deep", "folder"])
def test_a_result_that_can_not_be_read_is_one_line(content, run):
    from sat.rundir.result import read_result

    path = run / "result.json"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(Refused, match="result.json: ") as refusal:
        read_result(run)
    assert "\n" not in str(refusal.value)
