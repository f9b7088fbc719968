"""Recipes: each is complete and runs, and stands beside the numbers that were published of it."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import yaml
from conftest import ended, made
from messages import FINISHED
from test_experiments import spec

from sat.config import CONF
from sat.data import Jitter, TimmAugment
from sat.errors import Refused
from sat.evaluation.reproduction import Number, Published, agree, beside, seeds_of, verdict
from sat.rundir.result import AttackResult, RunResult

FILES = {path.stem: path for path in sorted((CONF / "recipe").glob("*.yaml"))}
# Updates on CIFAR-10's 50,000 images, less the held-out ones; peak rate; weight decay, and where it
# falls.
FACTS = {
    "rice2020": (78_200, 0.1, 5e-4, "all"),
    "pang2021": (43_010, 0.1, 5e-4, "all"),
    "wong2020": (5_865, 0.2, 5e-4, "all"),
    "fastat2026_pgd": (38_300, 0.1, 5e-4, "all"),
    "fastat2026_n_fgsm": (38_300, 0.1, 5e-4, "all"),
    "trades2019": (29_716, 0.1, 2e-4, "all"),
    "mart2020": (46_920, 0.01, 3.5e-3, "all"),
    "awp2020": (78_200, 0.1, 5e-4, "all"),
    "wang2023": (39_200, 0.2, 5e-4, "all_but_norms"),
    "salman2020": (None, 0.1, 1e-4, "all"),
    "singh2023": (None, 1e-3, 0.05, "all_but_biases"),
    "sat2020": (None, 0.1, 1e-4, "weights"),
}


@cache
def recipe(name: str):
    return spec(f"recipe={name}")


def published(name: str) -> Published:
    return Published.of(yaml.safe_load(FILES[name].read_text())["published"])


def test_all_twelve_are_there_and_in_the_tables():
    assert FILES.keys() == FACTS.keys()
    readme, page = ((CONF.parent / name).read_text() for name in ("README.md", "docs/recipes.md"))
    (row,) = (line for line in readme.splitlines() if line.startswith("| `recipe=` |"))
    assert all(f"`{name}`" in row and f"\n| `{name}` |" in page for name in FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_has_its_schedule(name):
    steps, peak, decay, on = FACTS[name]
    run = recipe(name)
    schedule, held = run.schedule, int(run.dataset.holdout)
    images = 50_000 - held if steps else 1_281_167
    assert steps is None or schedule.steps(images) == steps
    rates = [schedule.rate(k, images) for k in range(0, schedule.steps(images), 97)]
    assert max(rates) == pytest.approx(peak, rel=0.02)
    assert (schedule.weight_decay, schedule.weight_decay_on) == (decay, on)
    assert run.recipe == name and run.config["published"]["network"]


def test_rates_fall_where_they_are_published_to():
    def changes(name: str, images: int = 50_000) -> list[int]:
        schedule = recipe(name).schedule
        rates = [schedule.rate(k, images) for k in range(schedule.steps(images))]
        return [k for k in range(1, len(rates)) if not math.isclose(rates[k], rates[k - 1])]

    assert changes("rice2020") == changes("awp2020") == [100 * 391 - 1, 150 * 391 - 1]
    assert changes("pang2021") == [100 * 391, 105 * 391]
    assert changes("trades2019") == [74 * 391]
    assert changes("mart2020") == [74 * 391, 89 * 391, 99 * 391]


def test_attacks_and_selections_are_the_published_ones():
    rice, awp = recipe("rice2020"), recipe("awp2020")
    assert (rice.attack.steps, rice.attack.step_size, rice.attack.eps) == (10, 2.0, 8.0)
    assert rice.attack.batch_norm == "train" and rice.attack.update_statistics
    assert rice.objective.forwards == 3 and awp.objective.forwards == 3
    assert awp.attack == rice.attack and awp.schedule == rice.schedule and awp.model == rice.model
    assert (awp.weight_attack.gamma, awp.weight_attack.warmup_epochs) == (0.01, 0)
    trades = recipe("trades2019")
    assert float(trades.attack.eps) == pytest.approx(0.031 * 255)
    assert trades.attack.step_size == pytest.approx(0.007 * 255)
    assert (trades.attack.start, trades.attack.noise) == ("normal", 0.255)
    assert (trades.objective.beta, trades.objective.forwards) == (6.0, 3)
    n_fgsm = recipe("fastat2026_n_fgsm")
    attack = n_fgsm.attack
    assert (attack.noise, attack.project, attack.step_size) == (2.0, False, 8.0)
    assert (attack.label_smoothing, attack.batch_norm) == (0.4, "train")
    assert n_fgsm.validation.weights == "either" and n_fgsm.schedule.ema == 0.9995
    assert recipe("wong2020").attack.step_size == 10
    assert recipe("fastat2026_pgd").attack.label_smoothing == 0
    wang = recipe("wang2023")
    assert (wang.dataset.holdout, wang.dataset.holdout_from) == (1024, "first")
    assert (wang.validation.ties, wang.validation.attack.loss) == ("later", "margin")
    assert wang.schedule.ema_ramp and wang.schedule.ema_start == 0.025
    assert wang.schedule.norm_start == "batch" and wang.model.norm_momentum == 0.01
    singh, salman, sat = map(recipe, ("singh2023", "salman2020", "sat2020"))
    assert (singh.attack.steps, singh.attack.start) == (2, "none")
    assert singh.augment == TimmAugment(2, 9.0, 0.5, 0.25, 0.8, 1.0, 0.5)
    assert (salman.attack.start, salman.attack.keep) == ("none", "best")
    assert salman.augment == Jitter(0.1, 0.1, 0.1, 0.05)
    assert (sat.attack.start, sat.attack.clean_start, sat.model.init) == ("uncut", 0.2, "goyal")


@pytest.mark.parametrize("name", FACTS)
def test_a_file_opens_with_command_time_and_source(name):
    text = FILES[name].read_text()
    head = text.split("defaults:")[0]
    assert head.startswith("# @package _global_\n# ")
    for word in (f"recipe={name}", "# Time: ", "https" if "https" in head else "ead in"):
        assert word in head or name == "salman2020" and "could not be read" in head, word
    told = published(name)
    assert told.source.startswith("https://") and told.numbers
    for number in told.numbers:
        assert 20 < number.percent < 95 and number.images in (5_000, 10_000, 50_000)


def test_a_recipe_goes_with_an_evaluation_that_has_its_attacks():
    run = spec("recipe=sat2020", "evaluation=paper")
    assert {name: run.evaluation.attacks[name].step for name in ("pgd20", "pgd200")} == {
        "pgd20": 1.0, "pgd200": 1.0}  # fmt: skip


def test_what_could_not_be_read_is_said():
    wanting = {name for name in FACTS if published(name).not_as_published}
    assert wanting == {"wong2020", "wang2023", "salman2020", "singh2023", "sat2020"}


# runs -----------------------------------------------------------------------------------------

DIGITS = [
    "dataset=digits", "dataset.limit=80", "dataset.crop=1", "dataset.eps=38", "model.mean=null",
    "model.std=null", "schedule.epochs=1", "schedule.batch_size=20", "schedule.precision=fp32",
    "schedule.updates_per_epoch=auto", "evaluation=clean", "evaluation.limit=10",
    "evaluation.masking_checks=0", "evaluation.checkpoints=[last]", "device=cpu", "logger=[]",
]  # fmt: skip
SMALL = {
    "resnet": ["model.depth=10", "model.width=0.0625"],
    "preact_resnet": ["model.width=0.125"],
    "wide_resnet": ["model.depth=10", "model.width=0.5"],
    "timm": ["model.name=test_convnext", "model.pretrained=false", "dataset.image_size=32"],
}


def digits(name: str, tmp_path) -> list[str]:
    run, words = recipe(name), [f"recipe={name}", *DIGITS]
    words += SMALL[run.choices["model"]]
    words += ["dataset.image_size=null"] if "dataset.image_size=32" not in words else []
    words += ["dataset.holdout=20"] if run.dataset.holdout else []
    words += ["attack.steps=2"] if run.attack.steps > 2 else []
    measured = run.config["evaluation"]["attacks"]
    words += [f"evaluation.attacks.{name}.steps=1" for name in measured if name.startswith("pgd")]
    if name == "wang2023":
        np.savez(tmp_path / "x.npz", image=np.zeros((40, 8, 8, 1), np.uint8),
                 label=np.arange(40) % 10)  # fmt: skip
        words += [f"dataset.extra={tmp_path / 'x.npz'}", "validation.attack.steps=1"]
        words += ["dataset.holdout_from=drawn"]  # the first 20 lack a class
    return words


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_runs_for_a_short_epoch(name, tmp_path, capfd):
    assert ended(f"record.root={tmp_path}", *digits(name, tmp_path)) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert f"recipe {name}: {published(name).network}" in said
    assert "verdict" in said and "reproduced" not in said
    assert said.index("not the recipe's") < said.index("on: cpu"), "told before the training"
    for what in published(name).not_as_published:
        assert what.split(",")[0] in said
    (result,) = tmp_path.glob("*/result.json")
    assert json.loads(result.read_text())["steps"] >= 3


# verdicts -------------------------------------------------------------------------------------

HERE = [0.8523, 0.8541, 0.8555]
NUMBER = Number("clean", 85.35, checkpoint="last", seeds=3, spread=0.14)


def found(*accuracies: float, **more) -> list[AttackResult]:
    given = {"ci95": (0.0, 1.0), "images": 10_000, **more}
    return [AttackResult(accuracy=a, **given) for a in accuracies]


def test_numbers_agree_within_two_standard_errors():
    mean = sum(HERE) / 3
    own = sum((a - mean) ** 2 for a in HERE) / 2
    p = 0.8535
    known = 2 * math.sqrt(0.0014**2 / 3 + own / 3 + p * (1 - p) / 10_000)
    unknown = 2 * math.sqrt(own / 1 + own / 3 + p * (1 - p) / 10_000)
    for given, error in ((NUMBER, known), (replace(NUMBER, seeds=1, spread=None), unknown),
                         (replace(NUMBER, seeds=None, spread=None), unknown)):  # fmt: skip
        for side in (1, -1):
            within, beyond = (100 * (mean + side * by * error) for by in (0.9, 1.1))
            for percent, agrees in ((within, True), (beyond, False)):
                close = replace(given, percent=percent)
                assert agree(close, HERE) is agrees
    assert known < unknown


WHOLE = Published("https://x", "ResNet-18", (NUMBER,))


def test_a_verdict_is_given_where_like_is_compared_with_like():
    usual = {"attack": "PGD", "loss": "auto", "start": "uniform", "restarts": 1}
    pgd = replace(NUMBER, attack="pgd20", steps=20)
    assert verdict(pgd, WHOLE, found(*HERE, steps=20, settings=usual)) == "reproduced"
    assert verdict(NUMBER, WHOLE, found(*HERE)) == "reproduced"
    assert verdict(NUMBER, WHOLE, found(*(a - 0.05 for a in HERE))) == "not reproduced"


@pytest.mark.parametrize("number, recipe_says, here, reason", [
    (NUMBER, {"not_as_published": ("its batch",)}, found(*HERE), "not as published"),
    (replace(NUMBER, apart="a re-run"), {}, found(*HERE), "a re-run"),
    (replace(NUMBER, chosen_on="test"), {}, found(*HERE), "chosen on the test set"),
    (replace(NUMBER, checkpoint=None), {}, found(*HERE), "could not be read"),
    (NUMBER, {"overridden": ("schedule.epochs=1",)}, found(*HERE), "schedule.epochs=1 is not the"),
    (NUMBER, {}, [], "not measured here"),
    (NUMBER, {}, found(*HERE[:2]), "2 of the 3 seeds"),
    (NUMBER, {}, found(*HERE, images=500), "on 500 of 10,000 test images"),
    (replace(NUMBER, steps=10), {}, found(*HERE, steps=5), "with steps=5, where 10"),
    (replace(NUMBER, eps=7.905), {}, found(*HERE, eps=8.0), "with eps=8, where 7.905"),
    *((replace(NUMBER, attack="pgd20", steps=20), {},
       found(*HERE, steps=20, settings={"attack": "PGD", "loss": "auto", "restarts": 1, **other}),
       f"with {word}, where")
      for other, word in (({"restarts": 9}, "restarts=9"), ({"loss": "margin"}, "loss=margin"),
                          ({"start": "none"}, "start=none"), ({"attack": "APGD"}, "attack=APGD"))),
])  # fmt: skip
def test_else_the_reason_is_told(number, recipe_says, here, reason):
    said = verdict(number, replace(WHOLE, **recipe_says), here)
    assert said.startswith("no verdict: ") and reason in said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a recipe with but one word of the command line that a recipe leaves free."""
    place = tmp_path_factory.mktemp("recipes")
    (place / "conf" / "recipe").mkdir(parents=True)
    text = {"dataset": {"limit": 80, "holdout": 20, "crop": 1, "eps": 38},
            "model": {"depth": 10, "width": 0.0625},
            "schedule": {"epochs": 1.0, "batch_size": 20, "precision": "fp32"},
            "evaluation": {"attacks": {"pgd20": {"steps": 1}}, "masking_checks": 0},
            "published": {"source": "https://mine", "network": "ResNet-10", "numbers": [
                {"checkpoint": "last", "attack": "clean", "percent": 30.0, "images": 359},
                {"checkpoint": "best", "chosen_on": "held-out", "attack": "pgd20", "percent": 5.0,
                 "images": 359, "steps": 1}]}}  # fmt: skip
    (place / "conf" / "recipe" / "mine.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump(text))  # fmt: skip
    given = ["--config-dir", str(place / "conf"), "recipe=mine"]
    return place, given, made(place / "outputs", *given, "seed=3")


def test_the_seeds_of_a_run_are_those_of_its_configuration(run):
    place, given, first = run
    result = RunResult.read(first)
    other = replace(result, seed=4, last=replace(result.last, clean=found(0.5, images=359)[0]))
    for name, what in {"other": other, "half": replace(other, seed=5, status="trained"),
                       "elsewhere": replace(other, seed=6, configuration="x")}.items():  # fmt: skip
        (place / "outputs" / name).mkdir(exist_ok=True)
        (place / "outputs" / name / "result.json").write_text(json.dumps(what.as_json()))
    assert [each.seed for each in seeds_of(result, place / "outputs")] == [3, 4]
    config = yaml.safe_load((first / "config.yaml").read_text())
    text = beside("mine", Published.of(config["published"]), result, place / "outputs")
    assert "(2 seeds)" in text
    said = "last, clean; best (held-out), pgd20: no verdict: 2 of the 3 seeds that it takes"
    assert text.endswith(f"\n\n{said}")
    assert config["published"]["overridden"] == []


@pytest.mark.parametrize("word, counts", [
    ("attack.steps=2", True), ("dataset.limit=70", True), ("activation=relu", True),
    ("record.checkpoint_minutes=5", False), ("device=cpu", False), ("dataset.eps=30", True),
    ("evaluation.limit=50", False), ("validation.batch_size=50", False), ("logger=[]", False),
    ("+attack@evaluation.attacks.mine=pgd", False), ("attack@validation.attack=pgd", True),
])  # fmt: skip
def test_a_key_that_moves_the_training_is_no_longer_the_recipes(word, counts, tmp_path):
    from sat.job import overridden

    plain = {key: {"_target_": target} for key, target in {
        "attack": "sat.attacks.PGD", "dataset": "sat.data.Digits", "record":
        "sat.rundir.record.Record", "validation": "sat.evaluation.settings.Validation",
        "activation": "sat.activations.ReLU"}.items()}  # fmt: skip
    assert overridden(plain, ["recipe=mine", "seed=1", word]) == [word] * counts


def test_a_run_is_told_of_its_recipe_again_and_has_the_same_name_without_it(run, capfd):
    place, given, first = run
    capfd.readouterr()
    assert ended(f"record.root={place / 'outputs'}", *given, "seed=3") == 0
    said = capfd.readouterr().out
    assert FINISHED in said and "recipe mine: ResNet-10; https://mine" in said
    assert ended(f"record.root={place / 'outputs'}", f"evaluate={first}", "evaluation=pgd20",
                 "+attack@evaluation.attacks.more=fgsm", "evaluation.attacks.pgd20.steps=1",
                 "evaluation.masking_checks=0") == 0  # fmt: skip
    assert "recipe mine: ResNet-10" in capfd.readouterr().out


@pytest.mark.parametrize("wrong, says", [
    ("x", "published: has no x"), ({"source": "a"}, "published: lacks network"),
    ({"source": "a", "network": "b", "number": []}, "published: has no number"),
    ({"source": "a", "network": "b", "numbers": [{"attack": "clean"}]},
     "published.numbers: lacks percent"),
])  # fmt: skip
def test_what_is_no_such_description_is_refused(wrong, says):
    with pytest.raises(Refused, match=says):
        Published.of(wrong)
