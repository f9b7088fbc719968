"""One flag an image, whatever the batch; intervals; restarts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sat.acceleration.precision import float32
from sat.attacks import FGSM, PGD, Clean, Curve, FastAutoAttack
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import ensemble_of
from sat.evaluation.measure import accuracy
from sat.evaluation.measure import measure as measured
from sat.evaluation.settings import Evaluation, Validation
from sat.statistics import wilson


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 3))
    net.autocast = None
    return net


def data(n: int = 60):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = network()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3  # every fifth is wrong already
    return x, y


def batches(x, y, size):
    for part in torch.arange(len(x)).split(size):
        yield part, x[part], y[part]


def measure(model, images, attack, seed, restarts=1):
    images = list(images)
    judge = ensemble_of(attack, restarts, 11)
    outcomes = AttackOutcomes.new(judge.names, sum(len(y) for _, _, y in images))
    return measured(model, iter(images), judge, seed, outcomes)


@pytest.mark.parametrize("size", [7, 60])
def test_flags_do_not_depend_on_the_batch_size(size):
    x, y = data()
    whole = measure(network(), batches(x, y, 13), PGD(6, 3), seed=3, restarts=2)
    flags = measure(network(), batches(x, y, size), PGD(6, 3), seed=3, restarts=2)
    assert torch.equal(flags.clean, whole.clean) and torch.equal(flags.robust, whole.robust)
    assert flags.clean.tolist() == [i % 5 != 0 for i in range(60)]
    assert 0 < flags.robust.sum() < flags.clean.sum()
    assert not (flags.robust & ~flags.clean).any()


def test_restarts_count_the_worst_case_of_each_image():
    x, y = data()
    attack = PGD(12, 1, step=0.5)  # weak: much depends on the start
    robust = [measure(network(), batches(x, y, 20), attack, 1, n).robust for n in (1, 2, 8)]
    assert not (robust[1] & ~robust[0]).any() and not (robust[2] & ~robust[1]).any()
    assert robust[2].sum() < robust[0].sum()


def test_fallen_images_are_not_attacked_again():
    x, y = data()
    seen = []

    class Counting(PGD):
        def __call__(self, model, x, y, rng=None):
            seen.append(len(x))
            return super().__call__(model, x, y, rng)

    flags = measure(network(), batches(x, y, 60), Counting(6, 3), seed=1, restarts=2)
    first, second = sum(seen[:5]), sum(seen[5:])  # 48 are right: five batches of at most 11
    assert first == flags.clean.sum() and flags.robust.sum() <= second < first


def test_no_attack_leaves_clean_accuracy():
    flags = measure(network(), batches(*data(), 9), Clean(), seed=1)
    assert torch.equal(flags.clean, flags.robust)


def test_the_models_mode_is_kept():
    model = network().train()
    measure(model, batches(*data(), 9), PGD(6, 1), seed=1)
    assert model.training


def test_an_image_without_label_is_never_right():
    x, y = data(10)
    y[3] = -1
    flags = measure(network(), batches(x, y, 5), PGD(6, 2), seed=1)
    assert not flags.clean[3] and not flags.robust[3] and len(flags.robust) == 10


def test_wilson_interval():
    """Values of Newcombe (1998), table I, method 3."""
    for right, images, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                     (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(right, images) == pytest.approx((low, high), abs=6e-5)
    entry = accuracy(torch.tensor([True] * 9 + [False]))
    assert entry["accuracy"] == 0.9 and entry["images"] == 10
    assert entry["ci95"] == pytest.approx([0.5958, 0.9821], abs=1e-4)


def test_a_verdict_is_in_float32():
    model = network()
    model.autocast = torch.bfloat16
    torch.set_float32_matmul_precision("high")
    with float32(model):
        assert model.autocast is None
        assert torch.get_float32_matmul_precision() == "highest"
    assert model.autocast is torch.bfloat16
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"restarts": 0}, "restarts=0"),
        ({"limit": 0}, "limit=0"),
        ({"subset_seed": 3}, "subset_seed=3"),
        ({"attacks": {"a/b": Clean()}}, "attacks.a/b"),
        ({"attacks": {"x": 3}}, "attacks.x=3"),
        ({"attacks": {"clean": PGD(8)}}, "clean: letters"),
        ({"attacks": {"worst_case": PGD(8)}}, "worst_case: letters"),
        ({"curves": {"x": PGD(8)}}, "curves.x=PGD"),
        ({"curves": {"x": Curve(PGD(8), "eps", (1,))}, "restarts": 2}, "restarts=2"),
        (
            {"attacks": {"x": FastAutoAttack(8)}, "restarts": 2},
            "restarts=2: attacks.x has starts of its own",
        ),
        ({"attacks": {"x": FGSM(8)}, "restarts": 2}, "restarts=2: attacks.x begins at the same"),
        ({"checkpoints": ()}, "checkpoints=[]"),
        ({"masking_checks": -1}, "masking_checks=-1"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, key):
    with pytest.raises(ValueError) as refusal:
        Evaluation(**wrong)
    assert str(refusal.value).startswith(key)
    with pytest.raises(ValueError, match="every=0"):
        Validation(Clean(), every=0)


def test_a_nan_is_never_right():
    """argmax takes it for the largest; infinite logits are larger or smaller than others."""
    from sat.attacks.outcomes import is_right

    logits = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.0, torch.inf], [0.0, torch.nan]])
    right = is_right(torch.nn.Identity(), logits, torch.tensor([0, 0, 1, 1]))
    assert right.tolist() == [True, False, True, False]


def test_points_of_a_curve_are_no_mistaken_units():
    """Half of 1/255 is refused where somebody types it, and so is a ball beyond all pixels."""
    assert [attack.eps for attack in Curve(PGD(1.0), "eps", (0, 0.5, 2.0)).attacks] == [0, 0.5, 2]
    assert Curve(PGD(200.0), "eps", (2.0,)).attacks[0].eps == 400


def test_ties_are_counted_and_kept(tmp_path):
    """Rounded logits tie; the count is that of images which argmax calls right."""
    from sat.evaluation.evaluator import worst_of
    from sat.evaluation.store import Measurement, OutcomeStore
    from sat.identity import Settings

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return (4 * self.inner(x)).round()

    x, y = data()
    model = Rounded().eval()
    outcomes = measure(model, batches(x, y, 13), PGD(6, 2), seed=3)
    logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    tied = (logits.gather(1, y[:, None])[:, 0] == others) & (logits.argmax(1) == y)
    assert outcomes.ties["clean"] == int(tied.sum()) > 0
    assert not outcomes.robust[outcomes.tied].any()
    store = OutcomeStore(tmp_path, torch.arange(len(x)), "images")
    of = Measurement("last", "pgd", Settings({"attack": "PGD"}), "weights")
    store.write(of, outcomes)
    assert torch.equal(store.read(of).tied, outcomes.tied)
    both = worst_of({"a": outcomes, "b": outcomes})
    assert both.ties["attacked"] == outcomes.ties["attacked"]
    assert torch.equal(both.robust, outcomes.robust) and torch.equal(both.clean, outcomes.clean)


def test_outcomes_on_other_images_or_weights_never_meet(tmp_path):
    """Whatever is kept, whole or in parts, by this checkpoint or another of the same weights."""
    from sat.errors import Refused
    from sat.evaluation.store import Measurement, OutcomeStore
    from sat.identity import Settings

    here, other = (OutcomeStore(tmp_path, torch.arange(4), name) for name in ("these", "those"))
    of = Measurement("last", "pgd", Settings({"attack": "PGD"}), "weights")
    here.write_partial(of, AttackOutcomes.new(("pgd",), 4), process=0)
    assert here.read_partial(of) is not None and other.read_partial(of) is None
    here.write(of, AttackOutcomes.new(("pgd",), 4))
    assert len(here.read(replace(of, checkpoint="best")).fell) == 4
    for store, asked, what in (
        (other, of, "images"), (other, replace(of, checkpoint="best"), "images"),
        (here, replace(of, weights="of another"), "weights"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=f"measured on other {what} than the run has now"):
            store.read(asked)
