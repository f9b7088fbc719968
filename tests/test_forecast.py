"""What the forecast tells, beside what runs, models and sets turn out to be."""

import json
import re
import shlex
import types
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image

import sat.bench.forecast as module
from sat import objectives
from sat.attacks import (
    APGD,
    FGSM,
    PGD,
    AutoAttack,
    Clean,
    Curve,
    FastAutoAttack,
    Free,
    Multi,
    Square,
    Transfer,
)
from sat.attacks.base import frozen, input_gradient
from sat.bench import budget, work
from sat.bench.case import Case
from sat.bench.counting import step_cost
from sat.bench.stopwatch import Timed
from sat.config import composed
from sat.data import sizes
from sat.errors import Refused
from sat.loggers.screen import duration
from sat.objectives import Adversarial, Method


@pytest.fixture
def forecast(tmp_path, monkeypatch, capfd):
    """`forecast("attack.steps=2")` in this process, of runs in tmp_path: code, output, errors."""
    import logging

    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(key, "1")  # and as it was, after the test
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = module.main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    yield call
    logging.getLogger("sat").setLevel(logging.INFO)


def spec_of(*words: str):
    return composed(words)


def case_of(*words: str) -> Case:
    return Case(composed(words))


def told(out: str) -> dict[str, str]:
    """The list of what all runs share."""
    return {line[:24].strip(): line[24:].strip() for line in out.split("\n\n")[1].splitlines()}


# sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(), ("dataset.limit=160", "dataset.holdout=30"),
                                   ("dataset.image_size=16", "dataset.holdout=0.001")])  # fmt: skip
def test_digits_are_as_large_as_they_are_known_to_be(given):
    spec = spec_of(*given)
    data = spec.dataset(torch.device("cpu"), 3)
    found = sizes.sizes_of(spec.dataset)
    parts = [len(part) for part in (data.train, data.held_out, data.test)]
    assert [found.train, found.held_out, found.test] == parts
    assert (found.classes, *found.shape) == (10, 1, data.image_size, data.image_size)


def test_published_sizes_are_those_in_the_headers_of_the_options():
    for name, dataset in {"cifar10": sizes.Cifar10, "cifar100": sizes.Cifar100, "svhn": sizes.SVHN,
                          "fashion_mnist": sizes.FashionMNIST}.items():  # fmt: skip
        head = (ROOT / f"conf/dataset/{name}.yaml").read_text().splitlines()[0]
        found = re.search(r"([\d,]+) \+ ([\d,]+) (grey|colour).*?(\d+)x\d+", head)
        counts = [int(found[k].replace(",", "")) for k in (1, 2, 4)]
        train, test, classes, channels, pixels = sizes.PUBLISHED[dataset]
        assert counts == [train, test, pixels] and classes == (100 if "100" in name else 10)
        assert channels == {"grey": 1, "colour": 3}[found[3]]
    assert sizes.PUBLISHED[sizes.ImageNet][:3] == (1_281_167, 50_000, 1000)


def test_images_that_are_not_here_stay_a_part_of_the_callers_own_run(tmp_path):
    spec = spec_of("dataset=imagenet", f"dataset.root={tmp_path}")
    assert Case(spec).spec.fingerprint is None
    with pytest.raises(Refused, match="^dataset.root=") as told:
        assert spec.fingerprint
    assert str(tmp_path) in str(told.value)


def test_folders_and_files_of_ones_own_are_counted(tmp_path):
    for part, count in (("train", 6), ("val", 2)):
        for name in ("a", "b", "c"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                (tmp_path / part / name / f"{k}.png").write_bytes(b"never decoded")
    sizes_of = sizes.sizes_of
    spec = spec_of("dataset=imagefolder", f"dataset.root={tmp_path}", "dataset.holdout=3")
    found = sizes_of(spec.dataset)
    assert (found.train, found.held_out, found.test, found.classes) == (15, 3, 6, 3)
    assert found.shape == (3, 224, 224)

    labels = np.arange(40) % 4
    pixels = np.zeros((40, 12, 12), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=pixels, y_train=labels, x_test=pixels[:8],
             y_test=labels[:8])  # fmt: skip
    found = sizes_of(spec_of("dataset=npz", f"dataset.path={tmp_path}/x.npz").dataset)
    assert (found.train, found.held_out, found.test, found.classes) == (36, 4, 8, 4)
    assert found.shape == (1, 12, 12)


def test_timm_folders_are_counted_too(tmp_path):
    for part, count in (("train", 5), ("validation", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (4, 4)).save(tmp_path / part / name / f"{k}.png")
    spec = spec_of("dataset=timm", "dataset.name=folder", f"dataset.root={tmp_path}",
                   "dataset.holdout=2")  # fmt: skip
    found = sizes.sizes_of(spec.dataset)
    assert (found.train, found.held_out, found.test, found.classes) == (8, 2, 4, 2)


# gradient computations --------------------------------------------------------------------------


def test_gradients_of_each_attack():
    of, pgd = partial(work.gradients_of, classes=10), PGD(8.0, 7)
    assert [of(attack) for attack in (Clean(), FGSM(), pgd)] == [0, 1, 7]
    assert of(Curve(pgd, "eps", (0, 0.5, 1.0))) == 14  # a ball of no size takes no step
    assert of(Curve(pgd, "steps", (1, 5))) == 6
    assert [of(Square(queries=100)), of(Free()), of(FastAutoAttack())] == [50, 0, 187]
    assert of(AutoAttack(), classes=1000) == of(AutoAttack()) == 1190
    assert [of(FastAutoAttack(), classes=n) for n in (11, 1000)] == [197, 287]  # MALT's
    assert of(FastAutoAttack(targets="likeliest"), classes=1000) == 187
    assert of(Transfer(PGD(8.0, 20), "run-1", "ab", "outputs/run-1")) == 20


def test_gradients_of_an_attack_that_does_not_tell_are_counted():
    @dataclass(frozen=True)
    class Climb:
        iterations: int = 20
        eps: float = 8.0
        norm: str = "linf"
        batch_norm: str = "eval"
        loss: str = "auto"

        def __call__(self, model, x, y, rng=None, progress=None):
            with frozen(model, "eval"):
                for _ in range(self.iterations):
                    x = x + input_gradient(model, x, y)
            return x

    spec = case_of("evaluation=clean", "validation.limit=10").spec
    validation = replace(spec.validation, attack=Climb())
    found = work.work_of(Case(spec.bringing(validation=validation))).validation
    assert work.gradients_of(validation.attack, 10) == 20
    assert found and found % (10 * 23) == 0  # of ten images these, and three more


@pytest.fixture
def counted(monkeypatch):
    """Forwards with gradients by (place, kind): images of input gradients and of updates."""
    from sat.acceleration import folding
    from sat.evaluation import results
    from sat.evaluation.evaluator import Evaluator
    from sat.models import Classifier
    from sat.training import callbacks, train

    counts, place = {}, ["preflight"]

    def within(owner, name, where):
        call = getattr(owner, name)

        def placed(*args, **kwargs):
            place.append(where)
            try:
                return call(*args, **kwargs)
            finally:
                place.pop()

        monkeypatch.setattr(owner, name, placed)

    within(train, "fit", "training")
    within(folding, "_pairs", "folding")  # two images, to see how layers follow each other
    within(callbacks.Callbacks, "validate", "validation")
    within(results, "conclude", "evaluation")
    within(Evaluator, "views", "pictures")
    within(callbacks, "views", "pictures")
    forward = Classifier.forward

    def hooked(self, x):
        if torch.is_grad_enabled():
            kind = "update" if next(self.parameters()).requires_grad else "input"
            counts[place[-1], kind] = counts.get((place[-1], kind), 0) + len(x)
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", hooked)
    return counts


@pytest.mark.parametrize("attack, steps", [("pgd", 3), ("fgsm", 1), ("none", 0)])
def test_a_real_run_computes_as_many_gradients(sat, counted, attack, steps):
    more = ["attack.steps=3"] if attack == "pgd" else []
    given = [f"attack={attack}", *more, "schedule.batch_size=34", "schedule.accumulate=3",
             "evaluation.checkpoints=[last]", "evaluation.search=exact"]  # fmt: skip
    done = sat(*given)
    assert done.code == 0, done.err
    found = work.work_of(case_of(*TINY, *given))
    result = done.result
    assert found.updates == result["steps"] and found.images == result["images"]
    assert counted["training", "update"] == found.images
    assert counted.get(("training", "input"), 0) == steps * found.images
    assert found.units == 3 + 2 * steps
    right = round(result["last"]["clean"]["accuracy"] * 50)  # only these are attacked
    assert found.evaluation == (3 + 1) * 50 and counted["evaluation", "input"] == 3 * right
    rows = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "val/clean" in row]
    assert found.validation == len(rows) * 30 * (2 + 2 + 1)  # two steps, the probe, two forwards
    seen = sum(round(row["val/clean"] * 30) * (2 + 2) for row in rows)
    assert counted["validation", "input"] == seen


UNITS = [  # of an image: beside the attack, and of the attack
    (Method(Clean(), Adversarial()), 3 + 0),
    (Method(PGD(8, 2), Adversarial(forwards=3)), 5 + 4),
    (Method(PGD(8, 2, keep="best"), Adversarial()), 3 + 5),
    (Method(APGD(8, 2), Adversarial()), 3 + 5),
    (Method(Multi({"linf": 8, "l1": 400}, 2), Adversarial()), 3 + 5),
    (Method(Free(8, 2), Adversarial()), 3 + 3),
    (Method(PGD(8, 2, loss="kl"), objectives.TRADES()), 6 + 5),
    (Method(PGD(8, 1, loss="kl"), objectives.TRADES(forwards=3)), 9 + 3),
    (Method(PGD(8, 1), objectives.MART()), 6 + 2),
    (Method(PGD(8, 2), objectives.Consistency()), 6 + 8),
    (Method(Clean(), objectives.GradientNorm()), 6 + 0),
    (Method(PGD(8, 1), Adversarial(), weight_attack=objectives.AWP()), 6 + 2),
    (Method(PGD(8, 1, loss="kl"), objectives.TRADES(), weight_attack=objectives.AWP()), 12 + 3),
    (Method(PGD(8, 1), Adversarial(), objectives.GradAlign()), 11 + 2),
    (Method(PGD(8, 1), Adversarial(), objectives.ELLE()), 12 + 2),
    (Method(PGD(8, 1), Adversarial(), objectives.AdaptiveELLE()), 12 + 2),
]


def test_the_units_of_every_method_are_counted():
    for method, expected in UNITS:
        assert step_cost(method) == expected, method


def test_checkpoints_restarts_and_curves_multiply():
    """Each attack or curve has two forwards besides, which cost as much as one of its steps."""

    def evaluation(*given: str) -> int:
        return work.work_of(case_of(*given)).evaluation

    assert evaluation() == 2 * 359 * 21
    assert evaluation("evaluation.restarts=3", "evaluation.limit=100") == 2 * 100 * 61
    assert evaluation("evaluation=paper", "evaluation.checkpoints=[last]") == 359 * 284
    assert evaluation("evaluation=curves") == 2 * 359 * (8 * 20 + 391 + 2)
    assert evaluation("evaluation=strong", "evaluation.limit=10") == 2 * 10 * 188
    corrupted = "evaluation=corruptions", "evaluation.corruptions=CIFAR-10-C"
    assert evaluation(*corrupted) == 359 * (2 + 75), "a forward of each type and severity"


# memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [
    ("activation=silu",), ("activation=relu", "model.depth=26"),
    ("model=wide_resnet", "model.depth=10", "model.width=1"),
])  # fmt: skip
def test_activations_are_what_a_forward_leaves_allocated(given):
    """Measured by torch's profiler: all that was allocated in a forward and is not freed."""
    from torch.profiler import ProfilerActivity, profile

    case = case_of(*given, "dataset.image_size=16")
    model, (x, _) = case.model().train(), case.images(64)
    model(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        logits = model(x)
    left = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    del logits
    assert 64 * case.cost.saved == pytest.approx(left, rel=0.05)


def real_update(model, x, y) -> None:
    torch.nn.functional.cross_entropy(model(x), y).backward()


def test_memory_that_is_told_is_that_of_a_real_update_and_recomputation_needs_less():
    """Counted on shapes, beside tensors that are there: an SGD step's forward and backward."""
    most = {}
    for less in ("false", "true"):
        case = case_of("model=resnet", "model.depth=18", "dataset.image_size=32",
                       "model.width=0.25", f"schedule.grad_checkpointing={less}")  # fmt: skip
        call = partial(real_update, case.model().train(), *case.images(128))
        call()  # gradients are there from here on, and belong to the state
        most[less] = 128 * case.cost.most
        assert most[less] == pytest.approx(Timed(call).counted().most, rel=0.02)
    assert most["true"] < 0.7 * most["false"]


@pytest.mark.parametrize("optimizer, ema", [("sgd", 0.0), ("adamw", 0.99), ("lookahead_sgd", 0.0)])
def test_memory_is_that_of_the_tensors_of_a_training(optimizer, ema):
    from sat.objectives import Method
    from sat.training.plan import Plan
    from sat.training.state import TrainState
    from sat.training.step import update

    case = case_of(f"schedule.optimizer={optimizer}", f"schedule.ema={ema}")
    spec, model = case.spec, case.model()
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    schedule = replace(spec.schedule, batch_size=4)
    trainer = TrainState(model, Method(Clean(), spec.objective), Plan(schedule, 400, 0, choices))
    for _ in range(7):  # lookahead makes its slow weights at the sixth
        update(trainer, *case.images(4))
    held = [*model.parameters(), *model.buffers(), *model.parameters()]  # once for the gradients
    if ema:
        held += [*trainer.average.module.parameters(), *trainer.average.module.buffers()]
    own = trainer.optimizer
    for part in (own, getattr(own, "_base_optimizer", None)):
        for state in part.state.values() if part is not None else ():
            held += [t for t in state.values() if isinstance(t, torch.Tensor)]
    held = sum(t.numel() * t.element_size() for t in held)
    assert case.cost.state == pytest.approx(held, rel=0.001)


# the network ------------------------------------------------------------------------------------


def test_counts_are_those_of_the_real_network():
    from sat.acceleration.auto import multiply_adds
    from sat.models.weights import build_model

    case = case_of("activation=prelu", "model=efficientnet")
    shape = {"channels": 1, "classes": 10, "image_size": 8, "mean": [0.5], "std": [0.5]}
    real = build_model(case.spec, shape, torch.device("cpu"))
    assert case.cost.parameters == sum(p.numel() for p in real.parameters())
    assert case.cost.multiply_adds == multiply_adds(real, case.sizes.shape)


@pytest.mark.parametrize("option", sorted(p.stem for p in (ROOT / "conf/activation").glob("*")))
def test_every_activation_is_counted(option):
    cost = case_of(f"activation={option}", "model.width=0.0625").cost
    assert cost.multiply_adds > 0 and cost.parameters > 0


def test_a_surrogate_gradient_keeps_what_its_update_needs():
    """ReLU keeps its output, which the next layer keeps as well; a surrogate its input besides."""
    kept = {}
    for outer in ("true", "false"):
        case = case_of("activation=surrogate_relu", f"activation.outer={outer}")
        kept[outer] = case.cost.saved
    assert kept["true"] > 1.2 * kept["false"]


def test_the_largest_networks_of_the_study_need_no_memory(monkeypatch):
    case = case_of("dataset=imagenet", "model=efficientnet", "model.variant=l1",
                   "dataset.image_size=600")  # fmt: skip
    build, built = Case.network, []
    monkeypatch.setattr(Case, "network", lambda *a: built.append(build(*a)) or built[0])
    cost = case.cost
    assert all(t.is_meta for t in [*built[0].parameters(), *built[0].buffers()])
    assert cost.parameters == 272_630_564 and 160e9 < cost.multiply_adds < 164e9
    with pytest.raises(ValueError, match="^not timed: too"):
        work.tried(case)


# time -------------------------------------------------------------------------------------------


def test_time_adds_up():
    found = work.Work(updates=10, images=100, units=9.0, validation=40,
                      evaluation=50, checks=620)  # fmt: skip
    unit = 10**12
    assert found.seconds(unit, (2.0, 4.0)) == ((900 + 80) / 2, 100 / 4, 1240 / 4)


def test_a_rate_tells_the_time_without_trying(forecast, monkeypatch):
    monkeypatch.setattr(work, "try_out", None)
    code, out, err = forecast("experiment=imagenet_resnet50", "--tflops", "300",
                              "evaluation=clean", "validation.every=1000")  # fmt: skip
    assert code == 0, err
    here = told(out)
    assert here["multiply-adds"] == "4.09G" and here["precision"] == "bf16"
    updates = round(100 * (1_281_167 - 12_812) / 256)
    hours = updates * 256 * (2 * 1 + 3) * 2 * 4.089e9 / 300e12 / 3600
    found = re.fullmatch(r"(\d+)h(\d+)m", here["time"])
    assert int(found[1]) + int(found[2]) / 60 == pytest.approx(hours, rel=0.02)
    assert "Precision auto is taken to be bf16" in out
    # 100,000 images under 200 steps, at a hundredth of the rate
    out = forecast("experiment=imagenet_resnet50", "--tflops=300,3")[1]
    more = 2 * 50_000 * 201 * 2 * 2 * 4.089e9 / 3e12 / 3600
    validations = 100 * 12_812 * 13 * 2 * 2 * 4.089e9 / 300e12 / 3600
    found = re.fullmatch(r"(\d+)h(\d+)m", told(out)["time"])
    measured = int(found[1]) + int(found[2]) / 60 - hours - validations
    assert measured == pytest.approx(more, rel=0.02)


def test_options_of_a_folder_of_ones_own_are_forecast(forecast, tmp_path):
    (tmp_path / "activation").mkdir()
    (tmp_path / "activation" / "mine.yaml").write_text("_target_: sat.activations.Mish\n")
    for where in ([f"--config-dir={tmp_path}"], ["--config-dir", str(tmp_path)]):
        for words in ([*where, "activation=mine"], ["-m", "activation=mine", *where, "seed=0"]):
            code, out, err = forecast(*words, "--tflops=1")
            assert code == 0 and "-mine-pgd1" in out, err


@pytest.mark.parametrize("rate", ["0", "nan", "-1,2", "inf", "1,2,3"])
def test_a_rate_that_is_none_is_refused(forecast, rate):
    with pytest.raises(SystemExit) as end:
        forecast(f"--tflops={rate}")
    assert end.value.code == 2


def test_a_network_is_tried_once_in_a_sweep(forecast, monkeypatch):
    tries = []
    monkeypatch.setattr(work, "_TRIED", {})
    monkeypatch.setattr(work, "try_out", lambda *a: tries.append(a) or (1, 1))
    code, out, _ = forecast(*TINY, "-m", "activation=relu,silu", "attack.steps=1,3")
    assert code == 0 and len(tries) == 2
    assert "4 runs, 4 distinct: " in out


# the command ------------------------------------------------------------------------------------


def without_time(monkeypatch):
    monkeypatch.setattr(work, "_TRIED", {})
    monkeypatch.setattr(work, "try_out", lambda *a: (1e-3, 1e-3))


def test_a_run_is_counted_once(ran, forecast, monkeypatch):
    without_time(monkeypatch)
    given = [*TINY, f"record.root={ran.root}"]
    code, out, _ = forecast(*given)
    assert code == 0 and told(out)["run"] == ran.run.name
    _, out, _ = forecast(*given, "-m", "seed=0,0,1")
    assert "3 runs, 2 distinct: " in out


def files(folder: Path) -> list[tuple[str, int | bool]]:
    """Every path, and when a file was written last."""
    return sorted((str(p), p.is_file() and p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_nothing_is_left_behind(ran, forecast, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = files(tmp_path)
    code, out, _ = forecast(*TINY, f"record.root={ran.root}")  # the network is tried
    assert code == 0 and re.fullmatch(r"\d+s", told(out)["time"])
    without_time(monkeypatch)
    assert forecast(*TINY, f"record.root={ran.root}", "-m", "seed=0,1")[0] == 0
    assert forecast(*TINY, "-m", "seed=0,1")[0] == 0
    assert files(tmp_path) == before


def test_nothing_is_downloaded(forecast, monkeypatch):
    """The published sets are known; their readers are not asked."""
    from sat.data import Cifar10

    monkeypatch.setattr(Cifar10, "load", None)
    code, out, _ = forecast("dataset=cifar10", "dataset.limit=1000", "--tflops=1")
    assert code == 0 and told(out)["training images"] == "990"


@pytest.mark.parametrize("given, line", [
    (["activaton=relu"], "! activaton: "),
    (["activation=sillu"], "! activation=sillu: "),
])  # fmt: skip
def test_a_typo_is_one_line(forecast, given, line):
    code, out, err = forecast(*given)
    assert code == 2 and not out
    assert re.match(line, err) and len(err.strip().splitlines()) == 1


def test_an_option_that_is_none_is_refused_before_anything_is_tried(forecast, capfd):
    with pytest.raises(SystemExit) as refused:
        forecast("--nothing", "seed=1")
    assert refused.value.code == 2
    assert capfd.readouterr().err == "! sat-forecast: --nothing: no such option; see --help\n"


@pytest.mark.parametrize("given, line", [
    (["dataset=imagefolder"], "! dataset.root=data: no folder data/train;"),
    (["dataset=npz"], "! dataset.path=null: name the file"),
    (["dataset.limit=3"], "! dataset.limit=3: the set has 1438 training images"),
    (["model.depth=11"], "! model.depth=11: no such depth"),
    (["model=timm", "model.name=resnet19"], "! model.name=resnet19: no such model in timm"),
    (["model=timm", "model.name=vgg11"], "! dataset.image_size=8: the network fails on"),
    (["evaluate=nowhere"], "! evaluate=nowhere: trains nothing that could be timed"),
    (["schedule.optimizer=fusedsgd"], "! schedule.optimizer=fusedsgd: can't be built here"),
    (["objective=mart", "augment=cutmix"], "! objective=mart: weighs an image by the answer"),
    (["objective=trades", "attack=none"], "! objective=trades: compares adversarial with clean"),
    (["evaluation=pgd20", "evaluation.attacks.pgd20.target=12"],
     "! evaluation.attacks.pgd20.target=12: there are 9 wrong classes"),
    (["dataset.holdout=0", "evaluation.checkpoints=[best]"], "! evaluation.checkpoints=[best]: no"),
])  # fmt: skip
def test_what_is_refused_is_one_line(forecast, given, line):
    code, out, err = forecast(*given)
    assert code == 2 and not err
    assert out.startswith(line) and len(out.strip().splitlines()) == 1


def test_a_refused_job_is_listed_and_the_others_are_told(forecast, monkeypatch):
    without_time(monkeypatch)
    code, out, _ = forecast(*TINY, "-m", "attack.steps=1,0,2")
    assert code == 2
    assert len(re.findall(r"^digits-resnet10-w0.0625-silu-pgd[12]-", out, re.M)) == 2
    assert "3 runs, 2 distinct, 1 refused: " in out
    assert re.search(r"^! job 1 \(.*attack.steps=0\): attack.steps=0: must be", out, re.M)


def test_a_device_that_is_not_here_leaves_the_time_open(forecast):
    code, out, _ = forecast(*TINY, "device=cuda:9")
    assert code == 0 and told(out)["time"] == "-" and "1 run: of unknown time" in out
    assert "device=cuda:9: " in out and "--tflops X tells a time" in out


def test_another_launcher_is_not_asked(forecast, monkeypatch):
    without_time(monkeypatch)
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "-m"]
    code, out, _ = forecast(*TINY, *words)
    assert code == 0 and "2 runs, 2 distinct" in out


def test_masking_checks_stand_beside_the_total():
    two = [module.Job(None, {"run": name}, (12.0, 4.0, 19.0), "") for name in "ab"]
    assert module.totals(two, 0) == "2 runs, 2 distinct: 32s, and masking checks 38s at most"


def test_numbers_are_for_people():
    assert [duration(s) for s in (26, 190, 3599.8, 12_000, 1_051_200)] == [
        "26s", "3m10s", "1h00m", "3h20m", "12d04h"]  # fmt: skip


def test_an_unmet_limit_is_a_refusal():
    with pytest.raises(Refused, match="^dataset.holdout=40000: "):
        sizes.sizes_of(replace(spec_of("dataset=cifar100").dataset,
                               limit=30_000, holdout=40_000))  # fmt: skip


# what fits --------------------------------------------------------------------------------------


def job(name: str, seed: int = 0, epochs: float = 40.0, seconds=(300.0, 60.0, 0.0)):
    """A run that trains for 300 seconds and is measured for 60."""
    schedule, limit = types.SimpleNamespace(epochs=epochs), types.SimpleNamespace(limit=None)
    spec = types.SimpleNamespace(seed=seed, schedule=schedule, evaluation=limit)
    counts = types.SimpleNamespace(train=45_000, held_out=5_000, test=10_000)
    case = types.SimpleNamespace(spec=spec, sizes=counts)
    columns = {"run": name}
    return types.SimpleNamespace(columns=columns, case=case, seconds=seconds, note="no rate")


def fitting(seconds: float, *jobs) -> dict[int, tuple]:
    asked, found = budget.plans(jobs, seconds)
    assert asked.images == 50_000 and all(plan.seconds <= seconds + 1e-6 for plan in found)
    return {plan.seeds: (plan.epochs, plan.images, plan.tested) for plan in found}


def test_what_fits_is_cut_in_the_order_that_costs_least(monkeypatch):
    monkeypatch.setattr(budget, "BEGINNING", 0.0)
    two = [job("a"), job("b")]  # 720 seconds a seed
    assert fitting(7200, *two) == dict.fromkeys((1, 2, 3, 5, 10), (40, 50_000, 10_000))
    found = fitting(720, *two)
    assert found[1] == (40, 50_000, 10_000)
    assert found[2] == (16, 50_000, 10_000)  # 360: 120 of tests, 240 of 600
    assert found[3] == (10, 50_000, 6_600)  # 240: 80 of tests, 160 of 600
    assert 10 not in found or found[10][1] < 50_000
    seeds = [job("a", 0), job("a-1", 1)]
    assert fitting(360, *seeds)[1] == (40, 50_000, 10_000), "one seed of what is asked"
    studied = fitting(360, job("a", epochs=20), job("b", epochs=40))
    assert studied[1][0] is None and studied[1][1] < 50_000, "epochs are what is studied"
    assert fitting(90, job("a", epochs=3))[1] == (1, 30_000, 5_000), "60 of 300 seconds to train"
    assert fitting(90, job("a", epochs=1.27))[1][0] == 1
    assert fitting(90, job("a", epochs=0.5))[1][0] == 0.5, "less than an epoch stays"
    assert fitting(3, *two) == {}


def test_a_plan_becomes_the_words_that_make_it():
    asked = budget.Plan(1, 40.0, 50_000, 10_000, 1.0)
    assert asked.words(asked) == ["seed=0"]
    assert budget.Plan(3, 12, 1_200_000, 1000, 1.0).words(asked) == [
        "seed=0,1,2", "schedule.epochs=12", "dataset.limit=1200000", "evaluation.limit=1000"
    ]  # fmt: skip
    assert [budget.part(w, s) for w, s in ((50_000, 0.777), (40.0, 0.3), (7, 1.0), (359, 0.5))] == [
        38_000, 12, 7, 170
    ]  # fmt: skip


@pytest.fixture
def finished(monkeypatch):
    """Finished runs stand in: `finished({"a": [0.4, 0.42]})`, robust accuracies by seed."""

    def give(groups: dict[str, list[float]], alarms=()) -> None:
        told = types.SimpleNamespace
        result = told(alarms=[told(name=name) for name in alarms])
        config = {"choices": {"dataset": "digits"}, "schedule": {"epochs": 4}}
        rows = [
            told(runs=[told(name=f"{name}-{seed}", config=config, result=result)
                       for seed in range(len(values))],
                 numbers={("best", "strong"): told(seeds=dict(enumerate(values)))})
            for name, values in groups.items()
        ]  # fmt: skip
        tables = [told(attack="strong", rows=rows), told(attack="strong", rows=rows[:1])]
        monkeypatch.setattr(budget, "read", lambda place: told(tables=tables))

    return give


def test_the_spread_over_seeds_is_pooled_over_what_differs_in_nothing_else(finished):
    finished({"a": [0.40, 0.42], "b": [0.6, 0.6, 0.66], "alone": [0.1]})
    found = budget.spread_of(Path("."), "digits")
    assert found[0] == pytest.approx(((2 + 24) / 3) ** 0.5)
    assert found[1] == "5 runs of 4 epochs, 2 kinds, in ."
    assert budget.spread_of(Path("."), "cifar10") is None
    finished({"a": [0.40, 0.42]}, alarms=["collapse"])
    assert budget.spread_of(Path("."), "digits")[1].startswith("2 runs")
    finished({"a": [0.40, 0.42]}, alarms=["random"])
    assert budget.spread_of(Path("."), "digits") is None
    finished({"a": [0.4]})
    assert budget.spread_of(Path("."), "digits") is None
    assert budget.spread_of(Path("nowhere"), "digits") is None


def test_the_spread_is_of_runs_that_were_measured_alike_and_by_one_attack(folder, write):
    for seed, right in enumerate(({"pgd20": 50}, {"pgd20": 54, "strong": 20}, {"other": 90})):
        folder.add("relu", seed, right)  # the last one's pgd20 has another eps
    write()
    spread, told = budget.spread_of(folder.outputs, "digits")
    assert spread == pytest.approx(8**0.5) and told.startswith("2 runs of 4 epochs, 1 kind,")


def test_a_folder_that_holds_no_run_yet_tells_no_spread(tmp_path):
    (tmp_path / "benchmark").mkdir()
    assert budget.spread_of(tmp_path, "digits") is None
    (tmp_path / "runs.jsonl").write_bytes(b"\xff")
    with pytest.raises(Refused, match="runs.jsonl: can't be read"):
        budget.spread_of(tmp_path / "runs.jsonl", "digits")


def test_the_answer_is_a_command_line_that_composes_and_what_it_can_show(
    forecast, finished, monkeypatch
):
    without_time(monkeypatch)
    finished({"a": [0.40, 0.42], "b": [0.5, 0.55]})
    words = [*TINY, "activation=relu,silu", "attack.steps=2", "--spread", "."]
    code, out, err = forecast("--budget", "1h", *words)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("python -m sat.run -m "))
    assert "seed=0,1,2,3,4,5,6,7,8,9" in line and "schedule.epochs" not in line.split("seed=0")[1]
    assert "to see 2 points you need about" in out and "this network tried" in out
    assert "4 runs of 4 epochs, 2 kinds" in out and "held-out ones among them" in out
    short = forecast("--budget", "20s", *words)[1]
    line = next(line for line in short.splitlines() if line.startswith("python -m sat.run -m "))
    assert "seed=0 " in line + " "
    assert forecast(*shlex.split(line)[3:])[0] == 0, "the line composes"
    least = re.search("too little of them fits 1s.*--budget (.*?);",
                      forecast("--budget", "1s", *words)[1], re.S)[1]  # fmt: skip
    assert "python -m sat.run -m " in forecast("--budget", least, *words)[1]
    finished({})
    assert "isn't known" in forecast("--budget", "1h", *words)[1]
    code, _, err = forecast("--budget", "10m", *TINY, "device=cuda:9")
    assert code == 2 and err.startswith("! --budget: device=cuda:9")
    assert len(err.strip().splitlines()) == 1
