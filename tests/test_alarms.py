"""Each alarm is raised by a model that deserves it, and none by an honest one."""

import json

import numpy as np
import pytest
import torch
from conftest import small_network, trained_on_digits
from torch import nn

from sat import load
from sat.attacks import FGSM, PGD, Clean
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import ensemble_of
from sat.evaluation.masking_checks import Effort, masking_checks, square_alarm
from sat.evaluation.measure import measure as measured
from sat.objectives import AdaptiveELLE, GradAlign, Unregularised
from sat.rng import RowRng
from sat.rundir.result import MaskingChecks
from sat.statistics import beyond
from sat.training.overfitting import Overfitting, Probe, remedy_of

EPS = 25.0  # in 1/255, for the digits


def measure(model, batches, attack, seed):
    batches = list(batches)
    outcomes = AttackOutcomes.new(("restart 1",), sum(len(y) for _, _, y in batches))
    return measured(model, iter(batches), ensemble_of(attack, 1, 256), seed, outcomes)


@pytest.fixture(scope="module")
def honest():
    """A small network trained with PGD-1 on digits, and 128 test images, right and wrong ones."""
    model, x, y = trained_on_digits(small_network(), epochs=5, batch=100)
    return model, x[:128], y[:128]


# after the evaluation -------------------------------------------------------------------------


class Rounded(nn.Module):
    """Its gradient is 0 everywhere: the input is rounded."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 32).round() / 32)


class Sharp(Rounded):
    """Its softmax is saturated in float32."""

    def forward(self, x):
        return 1e4 * self.inner(x)


class Overflown(Rounded):
    """No number in most of its answers."""

    def forward(self, x):
        return torch.where(x.mean((1, 2, 3))[:, None] > 0.3, self.inner(x), torch.nan)


class Probabilities(Rounded):
    def forward(self, x):
        return self.inner(x).softmax(1)


class Constant(Rounded):
    def forward(self, x):
        return 0 * self.inner(x) + torch.arange(10.0)


class Guessing(Rounded):
    """Labels that have nothing to do with the images."""

    def forward(self, x):
        return self.inner(x.flip(0)).roll(3, 1)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Reversed(Rounded):
    """Its gradient points down the loss."""

    def forward(self, x):
        return self.inner(_Reversed.apply(x))


def names(found):
    return {alarm.name for alarm in found.alarms}


def ask(model, x, y, attack=None):
    return masking_checks(model, x, y, attack or PGD(EPS, 20), RowRng(0, torch.arange(len(x))))


def test_what_the_evaluated_attack_felled_is_not_left_to_square(honest):
    """The ascent of the checks is weaker than an ensemble: what it leaves tells nothing of that."""
    inner, x, y = honest
    model = Rounded(inner).eval()
    given = (model, x, y, PGD(EPS, 20), RowRng(0, torch.arange(len(x))))
    for robust, names in ((None, {"black_box"}), (torch.zeros(len(x), dtype=torch.bool), set())):
        found = masking_checks(*given, robust)
        assert {alarm.name for alarm in found.alarms} & {"black_box"} == names


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_honest_model_is_believed(honest, norm):
    model, x, y = honest
    eps = EPS if norm == "linf" else 4 * EPS
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = ask(model, x, y, PGD(eps, 20, norm=norm))
    assert found.alarms == []
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    accuracies = [point["accuracy"] for point in found.curve]
    assert accuracies == sorted(accuracies, reverse=True) and 0.2 < accuracies[-1] < accuracies[0]
    assert MaskingChecks.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_the_curve_is_that_of_pgd(honest):
    """An image that the PGD of so many steps fools at its end is not counted at that point."""
    model, x, y = honest
    rng = RowRng(0, torch.arange(len(x)))
    curve = {(p["steps"], p["restarts"]): p for p in ask(model, x, y).curve if "steps" in p}
    assert list(curve) == [(1, 1), (5, 1), (10, 1), (20, 1), (50, 1), (100, 1), (50, 2)]
    for steps in (1, 5, 20, 100):
        flags = model(PGD(EPS, steps)(model, x, y, rng)).argmax(1) == y
        pgd = float((flags & (model(x).argmax(1) == y)).float().mean())
        assert pgd - 0.03 <= curve[steps, 1]["accuracy"] <= pgd, steps


@pytest.mark.parametrize(
    "model, deserved",
    [
        (Rounded, {"saturated", "black_box"}),
        (Sharp, {"saturated"}),
        (Probabilities, {"saturated"}),
        (Constant, {"random"}),
        (Guessing, {"random"}),
        (Reversed, {"above_clean", "black_box"}),
    ],
)
def test_a_model_gets_the_alarms_that_it_deserves(honest, model, deserved):
    inner, x, y = honest
    found = ask(model(inner).eval(), x, y)
    assert deserved <= names(found), names(found)
    assert "random" in deserved or "random" not in names(found)
    assert all("\n" not in alarm.message for alarm in found.alarms)


@pytest.mark.parametrize("whole", [False, True])
def test_of_answers_that_are_no_numbers_nothing_else_is_asked(honest, whole):
    inner, x, y = honest
    model = Overflown(inner).eval()
    if whole:  # as a network that divides by 0
        del model.inner
        model.inner = lambda x: torch.full((len(x), 10), torch.nan)
    found = ask(model, x, y)
    (alarm,) = found.alarms
    assert alarm.name == "not_finite" and "schedule.learning_rate" in alarm.message
    assert (alarm.numbers["not_finite"] == len(x)) == whole and [*found.curve[0]][0] == "attack"
    assert len(found.curve) == 1 and "NaN" not in json.dumps(found.as_json())


def test_a_weak_attack_is_told_from_a_strong_model(honest):
    model, x, y = honest
    (alarm,) = ask(model, x, y, PGD(EPS, 2, step=3)).alarms
    assert alarm.name == "more_steps" and "100: " in alarm.message
    assert alarm.numbers["more"] < alarm.numbers["evaluated"] - 0.1
    assert ask(model, x, y, PGD(EPS, 10)).alarms == []


def test_one_answer_to_all_is_no_accuracy(honest):
    model, x, y = honest
    many = torch.cat([(y == 9).nonzero()[:, 0], (y == 1).nonzero()[:3, 0]])  # 9 is what it answers
    (alarm,) = (a for a in ask(Constant(model), x[many], y[many]).alarms if a.name == "random")
    assert alarm.numbers["constant"] and alarm.numbers["clean"] > 0.7


def test_a_restart_begins_elsewhere(honest):
    model, x, y = honest
    effort = Effort(model, x, y, PGD(EPS, 5), RowRng(0, torch.arange(len(x))), print)
    fell = [effort._ascend(y == y, 5, restart) for restart in (0, 0, 1)]
    assert torch.equal(fell[0], fell[1]) and not torch.equal(fell[0], fell[2])


class Rooted(nn.Module):
    """Right by a margin that no attack takes away; its gradient is no number at black pixels."""

    def forward(self, x):
        root = torch.where(x == 0, 0, x.sqrt()).mean((1, 2, 3))
        return torch.stack([-root, root + 5], 1)


def test_a_gradient_that_is_no_number_fells_nothing():
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    x[:, :, 0] = 0
    short = PGD(50, 5, norm="l2", start="none")
    effort = Effort(Rooted(), x, torch.ones(8).long(), short, RowRng(0, torch.arange(8)), print)
    (_, stands) = effort.by_gradients(torch.ones(8).bool())
    assert stands.all()


def test_flags_of_the_evaluation_are_taken(honest):
    model, x, y = honest
    right = model(x).argmax(1) == y
    rng = RowRng(0, torch.arange(len(x)))
    found = masking_checks(model, x, y, PGD(EPS, 20), rng, robust=right)  # as if it had felled none
    assert names(found) == {"more_steps"}


def test_without_an_eps_only_the_network_is_questioned(honest):
    model, x, y = honest
    assert len(ask(model, x, y, Clean()).curve) == 1
    assert names(ask(Probabilities(model), x, y, PGD(0))) == {"saturated"}


def test_an_ensemble_is_questioned_when_square_fells_after_gradients():
    order = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert square_alarm(order, [300, 20, 0, 5], 1000).name == "black_box"
    assert square_alarm(order, [300, 20, 0, 2], 1000) is None  # 0.2 %: as AutoAttack allows
    assert square_alarm(order, [30, 2, 0, 1], 100) is None  # a single image
    assert square_alarm(order[:3], [300, 20, 0], 1000) is None
    assert square_alarm(["square", "apgd-ce"], [300, 20], 1000) is None  # nothing came before
    assert not beyond(1, 3, 0.01) and beyond(4, 128, 0.01) and not beyond(3, 128, 0.01)


# while training -------------------------------------------------------------------------------


def test_the_probe_measures_and_changes_nothing(honest):
    model, x, y = honest
    batches = lambda: ((i, x[i], y[i]) for i in torch.arange(len(x)).split(50))  # noqa: E731
    attack, state = PGD(EPS, 10), torch.get_rng_state()
    probe = Probe(attack, PGD(2 * EPS, 4), torch.arange(len(x)))
    plain, flags = (measure(model, batches(), a, 0) for a in (attack, probe))
    assert torch.equal(plain.robust, flags.robust) and torch.equal(plain.clean, flags.clean)
    assert torch.equal(state, torch.get_rng_state())
    found = {key.split("/")[1]: value for key, value in probe.numbers(flags).items()}
    single = measure(model, batches(), FGSM(2 * EPS), 0).robust.float().mean()
    assert found["single_step"] == pytest.approx(float(single))
    assert found["gap"] == pytest.approx(float(single - flags.robust.float().mean()))
    assert found["zero_gradients"] == 0 and 0.3 < found["cosine"] < 1


def test_the_probe_sees_masked_gradients_and_linear_losses(honest):
    model, x, y = honest
    for net, key, value in (
        (Rounded(model).eval(), "zero_gradients", 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), "cosine", 1),
    ):
        labels = net(x).argmax(1)
        probe = Probe(PGD(EPS, 2), Clean(), torch.arange(len(x)))
        flags = measure(net, iter([(torch.arange(len(x)), x, labels)]), probe, 0)
        assert probe.numbers(flags)[f"diagnostics/{key}"] == pytest.approx(value, abs=1e-5)


def test_the_probe_looks_at_256_images_from_everywhere(honest):
    model, x, y = honest
    x, y = x.repeat(5, 1, 1, 1), y.repeat(5)
    probe = Probe(FGSM(EPS), FGSM(EPS), torch.arange(640))
    flags = measure(model, iter([(torch.arange(640), x, y)]), probe, 0)
    seen = flags.robust[::3]  # 256 of 640 at most, so every third
    assert probe.counts(flags) == (int(seen.sum()), int(seen.sum()), len(seen))
    assert sum(map(len, probe.stands)) == int(flags.clean[::3].sum()) < 214


def test_the_rule_tells_collapse_from_noise_and_from_decay():
    def raised(*seen, chance=0.1):
        rule = Overfitting(chance)
        return [k for k, counts in enumerate(seen) if rule.check(*counts, 100)]

    assert raised((30, 40), (45, 60), (3, 95)) == [2]
    assert raised((45, 60), (3, 95), (2, 99), (10, 97)) == [1]  # once
    assert raised((45, 60), (3, 95), (40, 60), (3, 95)) == [1, 3]  # and again after it came back
    assert raised((45, 60), (3, 95), (25, 60), (3, 95)) == [1]  # not back
    assert raised((45, 60), (30, 65)) == []  # two thirds are left: robust overfitting
    assert raised((12, 15), (3, 20)) == []  # noise
    assert raised((45, 60), (3, 5), (10, 10)) == []  # all of it fell apart
    assert raised((30, 30), (1, 40), chance=0.3) == []  # a constant answer at the start
    rule, again = Overfitting(0.1), Overfitting(0.1)
    rule.check(45, 60, 100)
    again.load_state_dict(rule.state_dict())
    assert again.check(3, 95, 100) == rule.check(3, 95, 100) is not None


def test_the_alarm_of_a_collapse_advises_what_the_training_does_not_do_yet():
    more, noise, linear = "attack.steps=2 or more", "attack=n_fgsm", "regulariser=gradalign"
    for attack, ways in {
        FGSM(8): [f"attack=pgd {more}", noise, linear],
        PGD(8): [more, noise, linear],
        PGD(8, 1, 10): [more, noise, "attack.step=1*eps", linear],
        PGD(8, 1, noise=2.0, project=False): [more, linear],
        PGD(128, 3, norm="l2"): ["attack.steps=4 or more"],
        PGD(8, 10): ["attack.steps=11 or more", linear],
    }.items():
        for regulariser in (Unregularised(), GradAlign(8), AdaptiveELLE(8)):
            alone = type(regulariser) is Unregularised
            left = [way for way in ways if alone or way != linear]
            alarm = Overfitting(0.1, remedy_of(attack, regulariser)).check(0, 230, 256)
            assert alarm.message.endswith(f"; try {', or '.join(left)}")


def small(self, channels, classes, size):
    """In place of a ResNet: so small that it collapses in seconds."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 8 * 8, classes),
    )  # fmt: skip


@pytest.fixture
def collapsing(sat, tmp_path, monkeypatch):
    """Runs on digits of 16 pixels that carry a pattern of +-40/255 for their class: what is easily
    learned and easily erased brings a single-step training to collapse (Ortiz-Jimenez et al.
    2023). Below the attack's eps of 65 robust accuracy is slow to come, so it is measured at 36.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    random = np.random.RandomState(0)
    order = random.permutation(len(images))[:1200]
    pattern = random.choice([-1, 1], (10, 16, 16))
    x = (images[order].reshape(-1, 8, 8) / 16).repeat(2, 1).repeat(2, 2)
    x = 255 * (0.25 + 0.5 * x) + 40 * pattern[labels[order]]
    x, y = x.clip(0, 255).round().astype(np.uint8), labels[order]
    np.savez(tmp_path / "easy.npz", x_train=x[:1000], y_train=y[:1000], x_test=x[1000:],
             y_test=y[1000:])  # fmt: skip
    monkeypatch.setattr("sat.models.ResNet.__call__", small)
    common = [
        "dataset=npz", f"dataset.path={tmp_path}/easy.npz", "dataset.crop=0", "dataset.holdout=150",
        "validation.attack.eps=36", "evaluation=clean", "activation=relu", "schedule.epochs=7",
        "schedule.batch_size=50", "schedule.learning_rate=0.15", "schedule.weight_decay=0",
        "schedule.decay=constant", "schedule.precision=fp32", "seed=2",
    ]  # fmt: skip
    return lambda *more, **where: sat(*common, *more, tiny=False, **where)


def validations(answer):
    rows = map(json.loads, (answer.run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "val/robust" in row]


def test_a_collapsed_fgsm_training_is_found_within_one_evaluation(collapsing, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = collapsing("attack=fgsm", "attack.eps=65")
    rows = validations(done)
    assert max(row["val/robust"] for row in rows[:3]) > 0.25
    assert rows[-1]["val/robust"] < 0.05 < 0.8 < rows[-1]["diagnostics/single_step"]
    assert rows[-1]["diagnostics/gap"] > 0.8
    assert rows[-1]["diagnostics/cosine"] < 0.6 * rows[0]["diagnostics/cosine"]
    (alarm,) = done.result["alarms"]
    assert alarm["name"] == "catastrophic_overfitting" and alarm["numbers"]["images"] == 150
    half = max(row["val/robust"] for row in rows) / 2
    fallen = [row["step"] for row in rows[1:] if row["val/robust"] <= half]
    assert alarm["step"] == fallen[0] and "attack.steps=2" in alarm["message"]
    assert done.err.count("robust accuracy collapsed") == 1  # when it happens; at the end its name
    rows = map(json.loads, (done.run / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row.get("alarm") == alarm["name"]] == fallen[:1]
    events = EventAccumulator(str(done.run), size_guidance={"tensors": 0}).Reload()
    (text,) = events.Tensors("alarms/text_summary")
    assert b"catastrophic_overfitting" in text.tensor_proto.string_val[0]
    assert "val_diagnostics/cosine" in events.Tags()["scalars"]
    # and after it: FGSM alone would call this model robust
    images = np.load(tmp_path / "easy.npz")
    x = torch.from_numpy(images["x_test"][:100, None]).float() / 255
    y = torch.from_numpy(images["y_test"][:100])
    alarms = {a.name: a for a in ask(load(done.run, "last"), x, y, FGSM(65)).alarms}
    numbers = alarms["more_steps"].numbers
    assert numbers["evaluated"] > 0.8 and numbers["more"] < 0.05


@pytest.mark.parametrize("attack", [["attack=pgd", "attack.eps=65", "attack.steps=4"],
                                    ["attack=none"]], ids=["pgd", "none"])  # fmt: skip
def test_its_twins_raise_no_alarm(collapsing, attack):
    done = collapsing(*attack, "schedule.epochs=4")
    assert done.code == 0 and done.result["alarms"] == []
    assert all(row["diagnostics/single_step"] >= 0 for row in validations(done))


def test_a_resumed_run_has_the_alarms_of_one_never_stopped(collapsing, tmp_path, monkeypatch):
    from sat.training.callbacks import Callbacks

    fgsm = ["attack=fgsm", "attack.eps=65", "schedule.epochs=5"]
    whole = collapsing(*fgsm, root=tmp_path / "whole")
    (alarm,) = whole.result["alarms"]
    validate, stops = (
        Callbacks.validate,
        {alarm["step"] - 17, alarm["step"]},
    )  # an epoch before; then

    def then_stop(journal, trainer):
        validate(journal, trainer)
        if trainer.step in stops:
            stops.remove(trainer.step)
            journal.asked_to_stop = 2

    monkeypatch.setattr(Callbacks, "validate", then_stop)
    for _ in range(2):
        assert collapsing(*fgsm, root=tmp_path / "parts").code == 130
    resumed = collapsing(*fgsm, root=tmp_path / "parts")
    assert not stops and resumed.result["alarms"] == [alarm]
    seen = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in validations(run)]
        for run in (whole, resumed)
    ]
    assert seen[0] == seen[1]


class Noisy(nn.Module):
    """Answers otherwise each time."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x)
        return logits + 0.05 * logits.std() * torch.randn_like(logits)


def test_a_network_that_answers_otherwise_each_time_is_told(honest):
    model, x, y = honest
    torch.manual_seed(0)
    names = {alarm.name for alarm in ask(Noisy(model), x, y, PGD(EPS, 10)).alarms}
    assert "stochastic" in names
    assert "stochastic" not in {a.name for a in ask(model, x, y, PGD(EPS, 10)).alarms}


def test_a_collapse_before_the_first_validation_is_told():
    assert Overfitting(0.1).check(0, 230, 256) is not None
    rule = Overfitting(0.1)
    assert rule.check(0, 230, 256) and rule.check(0, 232, 256) is None  # said once
    for robust, single in ((0, 20), (20, 60), (60, 110), (110, 120)):  # an honest beginning
        assert Overfitting(0.1).check(robust, single, 256) is None
    rule = Overfitting(0.1)
    assert rule.check(110, 150, 256) is None
    assert rule.check(5, 128, 256) is not None  # three quarters of the single step are left
    rule = Overfitting(0.1)
    assert rule.check(110, 150, 256) is None and rule.check(5, 60, 256) is None  # both went
