"""What is minimised, against the formula in float64; and where the objective's name is told."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import small_network
from torch import nn

from sat import config
from sat.attacks import FGSM, PGD, Clean
from sat.errors import Refused
from sat.objectives import TRADES, Adversarial, Method, training_attack
from sat.rng import RowRng, seed_of
from sat.training.plan import Plan
from sat.training.preflight import check_objective
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, (x + noise).clamp(0, 1), torch.arange(6) % 10


def gradients(loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*net.parameters()])])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("forwards", [2, 3])
def test_trades_is_its_formula(forwards, smoothing):
    net, (x, x_adv, y) = small_network().double(), batch()
    found, logits = TRADES(5.0, forwards, smoothing)(net, x, x_adv, y)
    p, q = net(x).softmax(1), net(x_adv).softmax(1)
    target = torch.full_like(p, smoothing / 10).scatter_add_(
        1, y[:, None], torch.full_like(p, 1 - smoothing)[:, :1]
    )
    natural = -(target * p.log()).sum(1).mean()
    expected = natural + 5 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.softmax(1), q, rtol=1e-12, atol=0)
    own, plain = gradients(found, net), gradients(expected, net)
    torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("forwards", [2, 3])
def test_statistics_move_once_a_forward(forwards):
    net, (x, x_adv, y) = small_network().double(), batch()
    TRADES(forwards=forwards)(net, x, x_adv, y)
    assert net[1].num_batches_tracked == forwards
    alone = small_network().double()
    for images in (x, x_adv, x)[:forwards]:
        alone(images)
    assert torch.equal(net[1].running_mean, alone[1].running_mean)


def test_the_divergence_of_certain_answers_has_a_gradient():
    """KL with a target of exactly 0 gives NaN."""
    logits = nn.Parameter(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]))
    loss, _ = TRADES()(lambda x: logits * x, torch.ones(2, 1), -torch.ones(2, 1), torch.arange(2))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("objective", [Adversarial(), TRADES()])
def test_soft_labels_are_those_of_one_class(objective):
    net, (x, x_adv, y) = small_network().double(), batch()
    hard, _ = objective(net, x, x_adv, y)
    soft, _ = objective(net, x, x_adv, nn.functional.one_hot(y, 10).double())
    torch.testing.assert_close(hard, soft, rtol=1e-12, atol=0)


# the attack of an objective -----------------------------------------------------------------------


def test_the_training_attack_alone_follows_the_objective():
    assert training_attack(PGD(8, 2), TRADES()) == PGD(8, 2, loss="kl")
    assert training_attack(PGD(8, 2), Adversarial()) == PGD(8, 2, loss="ce")
    assert training_attack(PGD(8, 2, loss="margin"), TRADES()) == PGD(8, 2, loss="margin")
    with pytest.raises(Refused, match="^attack.start=none: "):
        training_attack(PGD(8, 2, start="none"), TRADES())


def composed(*words: str) -> config.Spec:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", [*words], return_hydra_config=True)
        chosen = dict(cfg.hydra.runtime.choices)
        cfg = compose("config", [*words])
    groups = {*config.SECTIONS}
    choices = {group: option for group, option in chosen.items() if group in groups}
    return config.check({**config.resolve(cfg), "choices": choices})


@pytest.mark.parametrize("objective", config.options()["objective"])
def test_no_objective_moves_what_chooses_best_nor_the_test(objective):
    """They are built from the same file as the training's attack."""
    spec, usual = composed(f"objective={objective}"), composed()
    assert spec.validation.attack == usual.validation.attack
    assert spec.evaluation.attacks == usual.evaluation.attacks
    net, (x, _, y) = small_network().eval(), batch()
    x, rng = x.float(), RowRng(0, torch.arange(6))
    for attack in (spec.validation.attack, *spec.evaluation.attacks.values()):
        as_ce, as_kl = (replace(attack, loss=loss)(net, x, y, rng) for loss in ("ce", "kl"))
        assert torch.equal(attack(net, x, y, rng), as_ce) and not torch.equal(as_ce, as_kl)


def test_a_step_ascends_what_it_is_given():
    """The attack asks for the divergence, and soft labels are counted by their largest entry."""
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=1), 6, 0, choices)
    objective = TRADES()
    method = Method(training_attack(PGD(20, 2), objective), objective)
    state = TrainState(small_network(), method, plan)
    x, _, y = batch()
    rng = RowRng(seed_of(0, "attack", 0), torch.arange(6))
    own, net = PGD(20, 2, loss="kl")(state.model, x.float(), y, rng), small_network()
    loss, logits = objective(net, x.float(), own, y)
    update(state, x.float(), nn.functional.one_hot(y, 10).float())
    told = state.read()
    assert told["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    right = (logits.argmax(1) == y).float().mean()
    assert told["train/adversarial_accuracy"] == pytest.approx(right.item())


def test_what_makes_no_sense_together_is_refused(sat):
    check_objective(Clean(), Adversarial())
    check_objective(FGSM(8), TRADES())
    with pytest.raises(Refused, match="^objective=trades: compares .*attack=pgd"):
        check_objective(Clean(), TRADES())
    for words, says in (
        (["objective=trades", "attack=none"], "objective=trades: compares"),
        (["objective=trades", "attack=fgsm"], "attack.start=none"),
        (["objective.label_smoothing=1"], "objective.label_smoothing=1"),
        (["objective=trades", "objective.beta=-1"], "objective.beta=-1"),
        (["objective=trades", "objective.forwards=4"], "objective.forwards=4"),
        (["schedule.label_smoothing=0.1"], "label_smoothing"),
    ):
        refused = sat(*words)
        assert refused.code == 2 and not refused.runs, refused.err
        assert refused.err.count("\n") == 1 and says in refused.err, refused.err


def test_an_objective_is_told_wherever_an_attack_is(sat):
    done = sat("objective=trades", "objective.beta=2.5", "metrics=gradient_norm")
    assert done.code == 0, done.err
    assert "-pgd1-trades2.5-3ep-s0-" in done.run.name
    assert "objective: trades beta=2.5 forwards=2" in done.out and "loss=auto (here kl)" in done.out
    assert done.result["objective"]["option"] == "trades"
    assert done.result["objective"]["beta"] == 2.5
    from sat.loggers.base import compared

    spec = config.check(config.yaml.safe_load((done.run / "config.yaml").read_text()))
    table = compared(spec.config)
    assert table["objective"] == "trades" and table["objective.beta"] == 2.5
    rows = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["train/gradient_norm"] > 0 for row in rows if "train/loss" in row)
    other = sat("objective=trades", "objective.beta=2.5", "metrics=default")
    assert other.code == 0 and other.runs == done.runs, "figures are no part of an identity"


# figures ------------------------------------------------------------------------------------------


def test_the_norm_of_the_gradient_is_averaged_over_the_steps_of_a_log():
    from sat.training.metrics import GradientNorm

    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=1, clip=0.01), 6, 0, choices)
    norms = []

    class Watched(GradientNorm):
        def __call__(self, state):
            gradient = torch.cat([g.flatten() for g in state.gradients])
            norms.append(gradient.double().norm().item())
            return super().__call__(state)

    state = TrainState(small_network(), Method(PGD(20, 1), Adversarial()), plan, metrics=Watched())
    x, _, y = batch()
    for step in range(5):
        update(state, x.float() * (float("nan") if step == 2 else 1), y)
    del norms[2]
    told = state.read()
    assert told["train/gradient_norm"] == pytest.approx(sum(norms) / 4, rel=1e-6)
    assert told["train/gradient_norm"] > 0.01, "it is that before the gradient is clipped"
    assert set(state.read()) == {"train/learning_rate", "train/skipped_steps"}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_adversarial_is_cross_entropy_with_smoothed_labels(smoothing):
    x, x_adv, y = torch.rand(4, 3), torch.rand(4, 3), torch.tensor([0, 2, 1, 1])
    loss, logits = Adversarial(smoothing)(torch.nn.Identity(), x, x_adv, y)
    wanted = torch.full((4, 3), smoothing / 3)
    wanted[range(4), y] += 1 - smoothing
    assert torch.equal(logits, x_adv)
    assert loss == pytest.approx(-(wanted * x_adv.log_softmax(1)).sum(1).mean().item())
