"""PGD as an evaluation searches it, against PGD to the letter."""

from dataclasses import field, make_dataclass

import pytest
import torch
from conftest import small_network, trained_on_digits

from sat.acceleration.processor import cpu_has_bf16
from sat.attacks import PGD, AutoAttack
from sat.attacks import quick as module
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.quick import Quick, is_quick
from sat.attacks.series import Series, ensemble_of
from sat.evaluation.measure import measure
from sat.evaluation.settings import Evaluation
from sat.models import Classifier


def outcomes_of(ensemble, model, x, y, size: int = 1000) -> AttackOutcomes:
    outcomes = AttackOutcomes.new(ensemble.names, len(x))
    batches = [(part, x[part], y[part]) for part in torch.arange(len(x)).split(size)]
    return measure(model, iter(batches), ensemble, 3, outcomes)


@pytest.fixture(scope="module")
def robust_digits():
    return trained_on_digits(small_network(), 4, 100)


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request, monkeypatch):
    monkeypatch.setattr(module, "bf16_pays", lambda kind: request.param == "bfloat16")
    return request.param


def judged(model):
    """With an `autocast`, as the search of a classifier has it."""
    return Classifier(model, [0.0], [1.0]).eval()


@pytest.mark.parametrize("attack, restarts", [
    (PGD(25, 10), 1), (PGD(25, 3), 2), (PGD(180, 10, norm="l2"), 1), (PGD(25, 5, loss="margin"), 1),
    (PGD(25, 4, start="none"), 1), (PGD(25, 1), 1),
])  # fmt: skip
def test_its_verdicts_are_those_of_the_letter(attack, restarts, robust_digits, precision):
    if precision == "bfloat16" and not cpu_has_bf16():
        pytest.skip("a CPU without bfloat16 arithmetic emulates it, and is never searched in it")
    model, x, y = robust_digits
    model = judged(model)
    quick, letter = (outcomes_of(ensemble_of(attack, restarts, 50, on), model, x, y)
                     for on in (True, False))  # fmt: skip
    assert torch.equal(quick.clean, letter.clean)
    differ = int((quick.robust != letter.robust).sum())
    assert differ <= len(x) / 1000, differ
    assert 0.1 < letter.robust.float().mean() < letter.clean.float().mean() - 0.1


@pytest.mark.parametrize("steps", [1, 3])
def test_it_ends_where_the_attack_ends(steps):
    """From the same start, whatever the batch: the noise is the image's own."""
    model, asked = judged(small_network()), []
    x, y = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(9).long()

    class Watched(module.Network):
        def falls(self, points, images, labels):
            asked.extend(zip(images, points, strict=True))
            return super().falls(points, images, labels)

        def may_fall(self, logits, labels):
            return torch.zeros_like(labels, dtype=torch.bool)

    attack = PGD(8, steps)
    outcomes = AttackOutcomes.new(("restart 1",), 9)
    rng = module.RowRng(5, torch.arange(100, 109))
    own = attack(model, x, y, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Network", Watched)
        patch.setattr(module, "bf16_pays", lambda kind: False)
        Quick(attack, 1, 4).run(model, x, y, rng, outcomes)
    assert len(asked) == 9
    for image, point in asked:
        (row,) = [k for k in range(9) if torch.equal(image, x[k])]
        torch.testing.assert_close(point, own[row], rtol=0, atol=1e-6)


def test_an_image_that_fell_leaves_and_the_next_takes_its_place(robust_digits, monkeypatch):
    model, x, y = robust_digits
    sizes = []
    gradient = module.Network.gradient
    monkeypatch.setattr(
        module.Network, "gradient",
        lambda self, point, loss: sizes.append(len(point)) or gradient(self, point, loss),
    )  # fmt: skip
    monkeypatch.setattr(module, "bf16_pays", lambda kind: False)
    outcomes = outcomes_of(Quick(PGD(40, 20), 1, 50), judged(model), x, y)
    attacked = int(outcomes.clean.sum())
    assert sum(sizes) < 0.6 * 20 * attacked and set(sizes[:5]) == {50}


def test_parts_of_a_set_ask_float32_by_its_first_images(sat, ran, monkeypatch):
    """Between two classes all logits may be small near a fall, where those of the set are not."""
    made = []

    class Watched(module.Network):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(module, "Network", Watched)
    monkeypatch.setattr(module, "bf16_pays", lambda kind: True)
    monkeypatch.setattr("sat.data.batches.CHUNK", 1)  # each batch is a part
    more = ("+attack@evaluation.attacks.more=pgd", "evaluation.batch_size=16")
    more += ("evaluation.checkpoints=[best]", "evaluation.limit=50", "evaluation.masking_checks=0",
             "evaluation.attacks.pgd20.steps=3")  # fmt: skip
    assert sat(f"evaluate={ran.run}", *more, tiny=False).code == 0
    assert len(made) == 4 and {net.usual for net in made} == {made[0].usual} != {0.0}
    assert all(net.near for net in made)


def test_one_that_was_stopped_goes_on_where_it_was(robust_digits, monkeypatch):
    """What was decided stays, and is not attacked again; the verdicts are those of one call."""
    model, x, y = robust_digits
    monkeypatch.setattr(module, "bf16_pays", lambda kind: False)
    ensemble, model, left = Quick(PGD(25, 5), 2, 20), judged(model), [120]
    whole = outcomes_of(ensemble, model, x, y)
    outcomes = AttackOutcomes.new(ensemble.names, len(x))

    def changed(images: int) -> None:
        left[0] -= images
        if left[0] < 0:
            raise KeyboardInterrupt

    outcomes.changed = changed
    batches = [(torch.arange(len(x)), x, y)]
    with pytest.raises(KeyboardInterrupt):
        measure(model, iter(batches), ensemble, 3, outcomes)
    known, begun = int((outcomes.passed > 0).sum() + (outcomes.fell >= 0).sum()), []
    outcomes.changed, outcomes.begin = lambda images: None, lambda _, images: begun.append(images)
    measure(model, iter(batches), ensemble, 3, outcomes)
    assert 120 <= known and begun[0] == int(outcomes.clean.sum()) - known
    assert torch.equal(outcomes.fell, whole.fell) and torch.equal(outcomes.passed, whole.passed)


def test_float32_alone_decides(robust_digits, monkeypatch):
    """A search that takes everything for fallen fells no image by its word."""
    model, x, y = robust_digits
    monkeypatch.setattr(module, "bf16_pays", lambda kind: False)
    honest = outcomes_of(Quick(PGD(25, 3), 1, 64), judged(model), x, y)
    monkeypatch.setattr(
        module.Network, "may_fall", lambda self, logits, y: torch.ones_like(y, dtype=torch.bool)
    )
    eager = outcomes_of(Quick(PGD(25, 3), 1, 64), judged(model), x, y)
    assert torch.equal(eager.robust, honest.robust)


def test_what_is_searched_so():
    assert is_quick(PGD(8, 20)) and not is_quick(PGD(8, 20, loss="kl"))
    for other in ({"start": "normal"}, {"start": "uncut"}, {"keep": "best"}):
        assert not is_quick(PGD(8, 20, **other))
    assert isinstance(ensemble_of(PGD(8), 2, 9, True), Quick)
    assert isinstance(ensemble_of(PGD(8), 2, 9), Series)
    more = [("kept_off", float, field(default=0.0))]
    later = make_dataclass("PGD", more, bases=(PGD,), frozen=True)
    with pytest.MonkeyPatch.context() as patch:  # an option more, at its default and not
        patch.setattr(module, "PGD", later)
        assert is_quick(later(8, 20)) and not is_quick(later(8, 20, kept_off=0.1))
    auto = AutoAttack(8)
    assert ensemble_of(auto, 1, 9, True) is auto


def test_the_letter_is_another_measurement():
    fast, exact = (Evaluation({"pgd": PGD(8, 20), "auto": AutoAttack(8)}, search=search)
                   for search in ("fast", "exact"))  # fmt: skip
    assert "search" not in fast.settings("pgd").difference()
    assert exact.settings("pgd").difference()["search"] == "exact"
    assert exact.settings("auto") == fast.settings("auto")
    assert exact.settings("pgd").changes(fast.settings("pgd")) == ["search"]
    assert fast.settings("pgd").changes(exact.settings("pgd")) == ["search"]
    with pytest.raises(ValueError, match="search=slow"):
        Evaluation(search="slow")
