"""Averages of the weights: their numbers, where they begin, and what is measured of them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import made
from torch import nn

from sat.activations.surrogate import SurrogateReLU
from sat.errors import Diverged
from sat.rundir import checkpoint
from sat.training import swa as statistics
from sat.training.alarms import untrained_average
from sat.training.average import Average, Averaging, estimate_statistics
from sat.training.metrics import Totals
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.skips import Skips

ALL = lambda tensors: tensors  # noqa: E731


class Net(nn.Module):
    """One weight, a batch norm and a counter."""

    def __init__(self):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.full((1,), 5.0)), nn.BatchNorm1d(1)

    def at(self, value: float) -> "Net":
        """As it would be after an update."""
        with torch.no_grad():
            self.weight.fill_(value)
            self.norm.running_mean.fill_(10 * value)
            self.norm.num_batches_tracked += 2
        return self


def followed(averaging: Averaging, values: list[float], broken: tuple[int, ...] = ()):
    """The weight, and the running mean, of the average after each update."""
    net = Net()
    average, found = Average(net, averaging), []
    for number, value in enumerate(values):
        skipped = number in broken
        if not skipped:
            net.at(value)
        average.update(net, torch.tensor(number), torch.tensor(skipped), ALL)
        held = average.module
        found.append((held.weight.item(), held.norm.running_mean.item()))
        assert held.norm.num_batches_tracked == net.norm.num_batches_tracked
    return found, average


def blended(values: list[float], decays: list[float]) -> list[float]:
    """The first value, then each blended in."""
    held = [values[0]]
    for value, decay in zip(values[1:], decays, strict=True):
        held.append(decay * held[-1] + (1 - decay) * value)
    return held


VALUES = [1.0, 2.0, -3.0, 4.0, 0.5]


def test_the_plain_average_begins_as_the_first_weights_and_averages_statistics():
    found, _ = followed(Averaging(0.9), VALUES)
    expected = blended(VALUES, [0.9] * 4)
    assert [w for w, _ in found] == pytest.approx(expected)
    assert [m for _, m in found] == pytest.approx([10 * value for value in expected])


def test_the_ramp_counts_from_the_first_averaged_update_and_copies_statistics():
    start = 2
    found, _ = followed(Averaging(0.3, ramp=True, start=start), VALUES)
    ramp = [min(0.3, (1 + t) / (10 + t)) for t in range(3)]
    assert ramp == pytest.approx([0.1, 2 / 11, 0.25])
    expected = [1.0, *blended(VALUES[1:], ramp)]
    assert [w for w, _ in found] == pytest.approx(expected)
    assert [m for _, m in found] == pytest.approx([10 * value for value in VALUES])


def test_the_ramp_ends_at_the_decay():
    values = [float(k % 7) for k in range(40)]
    found, _ = followed(Averaging(0.5, ramp=True), values)
    decays = [min(0.5, (1 + t) / (10 + t)) for t in range(39)]
    assert decays.count(0.5) > 20 and found[-1][0] == pytest.approx(blended(values, decays)[-1])


def test_a_first_update_that_is_skipped_leaves_no_initial_weights_in_it():
    for averaging in (Averaging(0.9), Averaging(0.9, ramp=True), Averaging(0.0)):
        found, average = followed(averaging, VALUES, broken=(0, 1))
        assert found[0][0] == found[1][0] == 5.0 and found[2][0] == -3.0
        assert average.done == 3
    without = followed(Averaging(0.9, ramp=True), VALUES[2:])[0]
    assert followed(Averaging(0.9, ramp=True), VALUES, broken=(0, 1))[0][2:] == without


def test_a_skipped_update_counts_nothing():
    kept = [v for k, v in enumerate(VALUES) if k != 2]
    for averaging in (Averaging(0.9), Averaging(0.9, ramp=True), Averaging(0.0)):
        assert followed(averaging, VALUES, broken=(2,))[0][-1] == followed(averaging, kept)[0][-1]


def test_swa_is_the_mean_from_its_start():
    found, _ = followed(Averaging(0.0, start=2), VALUES)
    means = [sum(VALUES[2 : 2 + k]) / k for k in (1, 2, 3)]
    assert [w for w, _ in found] == pytest.approx([1.0, 2.0, *means])
    assert found[-1][1] == 5.0, "until they are estimated, statistics are the model's own"


def test_a_plan_says_when_an_average_starts():
    def averaging(**given) -> Averaging | None:
        return Plan(Schedule(epochs=4, batch_size=10, **given), 100, 0, {}).averaging

    assert averaging() is None
    assert averaging(ema=0.9, ema_ramp=True, ema_start=0.025) == Averaging(0.9, True, 1)
    assert averaging(swa_start=0.75) == Averaging(0.0, False, 30)


def test_statistics_are_estimated_on_the_batches_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    net[2].running_mean.fill_(7.0)
    before, sums = copy.deepcopy(net), []
    batches = [torch.rand(4, 1, 3, 3) for _ in range(3)]

    def watched():
        for x in batches:
            assert net[2].running_mean[0] == 7.0, "whoever makes a batch has the old ones"
            yield x

    estimate_statistics(net, watched(), lambda means, count: sums.append((len(means), count)))
    outputs = [before[1](x).transpose(0, 1).flatten(1) for x in batches]
    means = torch.stack([out.mean(1) for out in outputs]).mean(0)
    variances = torch.stack([out.var(1) for out in outputs]).mean(0)
    torch.testing.assert_close(net[2].running_mean, means)
    torch.testing.assert_close(net[2].running_var, variances)
    assert sums == [(2, torch.tensor([12.0]))]
    assert net[2].momentum == 0.1 and not any(m.training for m in net.modules())
    assert net[2].num_batches_tracked == 0
    torch.testing.assert_close(dict(net.named_parameters()), dict(before.named_parameters()))


# a whole run ----------------------------------------------------------------------------------

RUN = [
    "dataset.limit=160", "dataset.holdout=30", "model.width=0.0625", "schedule.epochs=4",
    "schedule.batch_size=26", "schedule.precision=fp32", "validation.attack.steps=1",
    "evaluation=clean", "evaluation.limit=50", "evaluation.masking_checks=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def swa(tmp_path_factory):
    return made(tmp_path_factory.mktemp("swa"), *RUN, "schedule.swa_start=0.5",
                "validation.weights=either")  # fmt: skip


def state_of(run, which="last"):
    return checkpoint.read(run / "checkpoints" / f"{which}.pt")


def test_the_statistics_of_swa_are_those_of_adversarial_training_images(swa):
    from sat.config import check
    from sat.data import indexed
    from sat.models.weights import build_model, read_run
    from sat.rng import RowRng, seed_of

    config, state = read_run(swa, "last")
    spec, cpu = check(config), torch.device("cpu")
    data = spec.dataset(cpu, 0)
    net = build_model(spec, state["facts"]["shape"], cpu).eval()
    net.load_state_dict(state["average"])
    clean, norm = [], net.backbone.bn1
    heard = norm.register_forward_pre_hook(lambda m, args: clean.append(args[0].mean((0, 2, 3))))
    adversarial, attack = [], spec.attack
    with torch.no_grad():
        for number, (indices, x, y) in enumerate(indexed(data.train, torch.arange(130), 26)):
            key = seed_of(0, "statistics", state["step"], number)
            with torch.enable_grad():
                x_adv = attack(net, x, y, RowRng(key, indices))
            clean.clear()
            net(x_adv)
            adversarial.append(clean[-1])
    heard.remove()
    mean = torch.stack(adversarial).mean(0)
    torch.testing.assert_close(mean, state["average"]["backbone.bn1.running_mean"],
                               rtol=0.02, atol=0.02)  # fmt: skip
    assert state["averaged"] == 9 + 1 and state["step"] == 20
    weights = state["average"]["backbone.fc.weight"]
    assert not torch.equal(weights, state["model"]["backbone.fc.weight"])


def test_best_is_the_average_or_the_weights_by_the_held_out_images(swa):
    import json

    rows = [json.loads(line) for line in (swa / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "val/robust" in row]
    assert len(rows) == 4 and all("val/weights_robust" in row for row in rows)
    best = json.loads((swa / "result.json").read_text())["best"]
    kinds = {"average": ("val/robust", "val/clean"), "weights": (
        "val/weights_robust", "val/weights_clean")}  # fmt: skip
    scores = [(row[r], row[c]) for row in rows for r, c in kinds.values()]
    (row,) = [row for row in rows if row["step"] == best["step"]]
    assert max(scores) == tuple(row[key] for key in kinds[best["of"]])
    assert state_of(swa, "best")["of"] == best["of"]


def test_without_an_average_there_is_nothing_to_choose_from(sat):
    answer = sat("validation.weights=either")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert "validation.weights=either: the run averages no weights" in answer.err


def test_what_attacks_by_updates_has_no_statistics_of_its_own(sat):
    answer = sat("attack=free", "schedule.swa_start=0.5")
    assert answer.code == 2 and answer.err.count("\n") == 1, answer.err
    assert "schedule.swa_start=0.5: estimates statistics" in answer.err


def test_equals_go_to_whom_the_run_says(swa):
    from sat.evaluation.settings import Validation
    from sat.training import best

    def beats(ties, score, step):
        return best.beats(score, step, {"score": [0.5, 0.9], "step": 10}, ties)

    assert not beats("earlier", [0.5, 0.9], 20) and beats("earlier", [0.5, 0.95], 20)
    assert beats("later", [0.5, 0.1], 20) and not beats("later", [0.4, 0.95], 20)
    assert not beats("later", [0.5, 0.9], 10), "of one step the average comes first"
    with pytest.raises(ValueError, match="ties=last"):
        Validation(ties="last")


def test_a_tensor_of_two_names_is_averaged_once():
    first = nn.Linear(2, 2)
    net = nn.Sequential(first, nn.BatchNorm1d(2), first)
    for averaging in (Averaging(0.9), Averaging(0.9, ramp=True)):
        average = Average(net, averaging)
        average.done.fill_(9)
        with torch.no_grad():
            first.weight.fill_(1.0)
            average.module[0].weight.zero_()
        average.update(net, torch.tensor(20), torch.tensor(False), list)
        share = float(averaging.share(torch.tensor(9.0)))
        assert average.module[2] is average.module[0]
        torch.testing.assert_close(average.module[0].weight, torch.full((2, 2), share))


def test_statistics_are_of_images_that_can_be_read(monkeypatch):
    """One that can't is black, and has the label -1, which no attack takes. The attack is that of
    the training, gradients of surrogates among it."""
    net = nn.Sequential(nn.BatchNorm2d(1), SurrogateReLU())
    state, seen = SimpleNamespace(
        plan=Plan(Schedule(epochs=1, batch_size=8, swa_start=0.5), 8, 0, {}), step=9,
        parts=SimpleNamespace(count=1),
        world=SimpleNamespace(size=1, own=slice(None), mean_=lambda means, sums: None),
        average=Average(net, Averaging(0.0)), model=net, progress=None,
        attack=lambda net, x, y, rng, _: seen.append(
            (len(x), int(y.min()), len(rng.rows), net[1].phase)) or x,
    ), []  # fmt: skip
    x, y = torch.rand(8, 1, 2, 2), torch.tensor([0, 1, -1, 2, 0, -1, 1, 2])
    given = torch.arange(8), x * (y >= 0)[:, None, None, None], y
    monkeypatch.setattr(statistics, "indexed", lambda *_: [given])
    statistics.estimate(state, range(8))
    assert seen == [(6, 0, 6, "inner")] and state.average.module[1].phase is None
    torch.testing.assert_close(state.average.module[0].running_mean[0], x[y >= 0].mean())


CYCLED = ["schedule/decay=one_cycle", "schedule.decay.momentum=[0.9,0.8]", "schedule.ema=0.9"]
RAMPED = ["schedule.ema=0.9", "schedule.ema_ramp=true", "schedule.ema_start=0.3"]


FREE = ["attack=free", "attack.replays=4", "schedule.ema=0.9"]  # an update each replay


@pytest.mark.parametrize("more", [RAMPED, ["schedule.swa_start=0.5"], CYCLED, FREE])
def test_an_average_goes_on_where_it_was(more, tmp_path, monkeypatch):
    from sat.training.callbacks import Callbacks

    whole = state_of(made(tmp_path / "whole", *RUN, *more))
    look = Callbacks.look

    def stop(self, state):
        self.asked_to_stop = 15 * (state.step == 12)
        look(self, state)

    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(Callbacks, "look", stop)
        made(tmp_path / "cut", *RUN, *more)
    cut = state_of(made(tmp_path / "cut", *RUN, *more))
    for key in ("model", "average"):
        assert all(torch.equal(cut[key][name], t) for name, t in whole[key].items())
    assert torch.equal(cut["averaged"], whole["averaged"])


def test_statistics_are_estimated_anew_after_a_fault_in_a_validation(tmp_path, monkeypatch):
    """By an attack that follows the progress of the training, on the average as it was."""
    from sat.errors import Fault
    from sat.training import callbacks

    words = [*RUN, "schedule.swa_start=0.5", "attack.eps_warmup=0.5"]
    whole = state_of(made(tmp_path / "whole", *words))
    validate, calls = callbacks.validate, []

    def fails(*given):
        calls.append(1)
        if len(calls) == 4:  # after the last step
            raise Fault("a process that reads images has died")
        return validate(*given)

    monkeypatch.setattr(callbacks, "validate", fails)
    with pytest.raises(AssertionError):
        made(tmp_path / "torn", *words)
    torn = state_of(made(tmp_path / "torn", *words))
    assert len(calls) == 5 and torn["step"] == whole["step"]
    assert all(torch.equal(torn["average"][name], t) for name, t in whole["average"].items())


@pytest.mark.parametrize("ema, more, told", [
    (0.999, {}, True), (0.5, {}, False), (0.999, {"ema_ramp": True}, False),
    (0.95, {"ema_start": 0.5}, True), (0.0, {"swa_start": 0.5}, False),
])  # fmt: skip
def test_an_average_of_weights_that_are_not_trained_is_told(ema, more, told):
    state = SimpleNamespace(
        plan=Plan(Schedule(epochs=1, batch_size=10, ema=ema, **more), 200, 0, {})
    )
    alarm = untrained_average(state)
    assert (alarm is not None) == told
    if told:
        assert f"schedule.ema={ema}" in alarm.message and alarm.numbers["share"] > 0.5


def test_skips_are_of_updates_and_told_by_steps():
    skips, broken = Skips(torch.device("cpu"), replays=4), torch.tensor(True)
    for _ in range(39):
        skips.count(broken)
    assert "step 9: " in skips.read(skips.counts.tolist())[0]
    with pytest.raises(Diverged, match="in all 40"):
        skips.skipped = 40
        skips.check_taken(10)
    skips.count(broken)
    with pytest.raises(Diverged, match="in 10 steps, one after the other, up to step 9"):
        skips.read(skips.counts.tolist())


def test_other_figures_than_a_checkpoint_has_begin_anew():
    totals, one = Totals(torch.device("cpu")), torch.ones(())
    totals.load_state_dict({"tags": ["a"], "values": torch.ones(2)})
    totals.add({"a": (one, one), "b": (2 * one, one)}, torch.tensor(False))
    assert totals.means(totals.values.tolist()) == {"a": 1.0, "b": 2.0}
