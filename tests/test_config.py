"""What composes, what is refused and how, and what makes two runs the same run."""

import importlib
import inspect
import re
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sat import config
from sat.config import CONF, check, convert, resolve
from sat.errors import Refused
from sat.identity import SECTIONS, readable

# Packages whose classes are options: what their groups' files name is what a package exports.
PACKAGES = {
    "activations": ["activation"], "models": ["model"],
    "attacks": ["attack", "evaluation", "validation"],
    "data": ["augment", "dataset", "sampler"],
    "objectives": ["objective", "regulariser", "weight_attack"],
}  # fmt: skip
BESIDE = {  # that are no members of a group
    "Ensemble", "Transfer", "Method", "Batch", "Data", "Loader", "UnreadableImage", "Classifier",
}  # fmt: skip


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=False)


def spec(*overrides: str):
    choices = {"dataset": "digits", "model": "resnet", "activation": "silu", "attack": "pgd"}
    pairs = (o.split("=", 1) for o in overrides if "=" in o)
    choices |= {k: v for k, v in pairs if k in choices}
    return check({**resolve(composed(*overrides)), "choices": choices})


def files() -> dict[str, list[str]]:
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name != "hydra"  # launchers: test_sweeps.py
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_class_is_an_option_and_every_option_is_a_class(package):
    """So a new member is a class and a file that names it, in whichever module; a file that is lost
    is missed."""
    module = importlib.import_module(f"sat.{package}")
    exported = {name: getattr(module, name) for name in module.__all__}
    members = {name for name, one in exported.items() if inspect.isclass(one)}
    members -= {name for name in members if getattr(exported[name], "_is_protocol", False)}
    files = [file for group in PACKAGES[package] for file in (CONF / group).glob("*.yaml")]
    text = "\n".join(file.read_text() for file in files)
    named = re.findall(rf"^ *_target_: (sat\.{package}(?:\.\w+)+)$", text, re.M)
    for module, _, name in (place.rpartition(".") for place in named):
        assert inspect.isclass(getattr(importlib.import_module(module), name)), (module, name)
    assert members - BESIDE <= {place.rpartition(".")[2] for place in named}


CHOOSING = {"experiment", "recipe", "sizes"}  # options of other groups


def test_every_option_of_every_group_composes(monkeypatch):
    """One of each group at a time, but for those that choose options of other groups."""
    monkeypatch.setattr("sat.loggers.base.find_spec", lambda name: name)  # trackers are extras
    found = files()
    assert found.keys() >= {*SECTIONS} and sum(map(len, found.values())) > 100
    for name, key in {"transfer": "source", "corruptions": "corruptions"}.items():
        found["evaluation"].remove(name)  # for a run or a folder, and it says so
        with pytest.raises(Refused, match=f"evaluation.{key}="):
            spec(f"evaluation={name}")
    words = {group: [f"{group}={name}" for name in names] for group, names in found.items()}
    words["logger"] = [f"logger=[{name}]" for name in found["logger"]]
    asked = [(word,) for group in CHOOSING for word in words.pop(group)]
    asked += zip_longest(*words.values())
    for options in asked:
        run = spec(*(option for option in options if option))
        assert run.parts.keys() == {*SECTIONS, "logger"}, options


def test_every_dataset_has_a_schedule_of_its_name():
    found = files()
    assert found["dataset"] == found["schedule"]


def test_a_dataset_alone_is_a_sensible_run():
    cifar = spec("dataset=cifar10")
    assert (cifar.attack.eps, cifar.model.depth, cifar.model.width) == (8, 18, 1)
    assert cifar.validation.attack.eps == cifar.evaluation.attacks["pgd20"].eps == 8
    assert cifar.schedule.epochs == 30 and cifar.schedule.decay == "step"
    paper = spec("dataset=imagenet").schedule
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.warmup_epochs) == (
        100, 256, 0.1, 5)  # fmt: skip
    assert paper.milestones == (0.3, 0.6, 0.9) and paper.weight_decay == 1e-4
    assert paper.ema == 0 and paper.optimizer == "sgd"


def test_the_command_line_wins():
    run = spec("dataset=cifar10", "schedule.epochs=2", "attack.eps=4", "model.depth=50")
    assert (run.schedule.epochs, run.attack.eps, run.model.depth) == (2, 4, 50)
    assert run.evaluation.attacks["pgd20"].eps == 8  # the threat model is the dataset's


@pytest.mark.parametrize(
    "override, says",
    [
        ("activation=gleu", ["activation=gleu", "did you mean gelu?", "own: --config-dir DIR"]),
        ("activtion=gelu", ["activtion", "did you mean activation?"]),
        ("schedule.epohcs=3", ["schedule.epohcs", "did you mean epochs?"]),
        ("+schedule.epohcs=3", ["schedule.epohcs=3", "did you mean epochs?"]),
        ("sched.epochs=3", ["sched", "schedule"]),
        ("+sched.epochs=3", ["sched", "did you mean schedule?"]),
        ("seeed=3", ["seeed", "did you mean seed?"]),
        ("schedule.epochs=many", ["schedule.epochs=many", "a number"]),
        ("attack.steps=1.5", ["attack.steps=1.5", "a whole number"]),
        ("attack.start=3", ["attack.start=3", "uniform or uncut or normal or none"]),
        ("attack.norm=l3", ["attack.norm=l3", "linf or l2 or l1"]),
        ("attack.step=car", ["attack.step=car", "a number", "auto"]),
        ("attack.eps=0.03", ["attack.eps=0.03", "1/255", "eps=7.65"]),
        (
            "+activation.alpha=2",
            ["activation.alpha=2", "SiLU", "celu, elu, parametric_softplus, pssilu, rcr_af, smoo"],
        ),
        ("activation.alpha=2", ["activation.alpha", "no such key", "celu, elu, parametric"]),
        ("attacks.steps=2", ["attacks.steps", "did you mean attack?"]),
        ("recip=rice2020", ["recip", "did you mean recipe?"]),
        ("experment=alpha", ["experment", "did you mean experiment?"]),
        ("epochs=5", ["epochs: no such key; it is schedule.epochs"]),
        ("lr=0.1", ["lr: no such key; it is schedule.learning_rate"]),
        ("schedule.lr=0.1", ["schedule.lr: no such key; it is schedule.learning_rate"]),
        ("+schedule.wd=0.1", ["schedule.wd=0.1", "it is schedule.weight_decay"]),
        ("epsilon=8", ["epsilon: no such key; it is dataset.eps (of all attacks) or at"]),
        ("evaluation.steps=50", ["it is evaluation.attacks.NAME.steps"]),
        ("seed=0-3", ["seed=0-3: must be a whole number; ", "-m 'seed=range(0,4)'"]),
        ("seed=range(3)", ["seed=range(3): several values are a sweep; write -m 'seed=range(3)'"]),
        ("objective.beta=6", ["objective.beta", "options of objective with beta: consistency"]),
        ("attack.random_start=false", ["attack.random_start", "it is attack.start"]),
        ("model.depth=19", ["model.depth=19", "18"]),
        ("model.width=-1", ["model.width=-1"]),
        ("schedule.batch_size=0", ["schedule.batch_size=0"]),
        ("schedule.milestones=[30,60]", ["schedule.milestones=[30, 60]: are fractions"]),
        ("schedule.epochs=0", ["schedule.epochs=0: must be finite"]),
        ("schedule.milestones=3", ["schedule.milestones=3", "a list"]),
        ("schedule.optimizer=sdg", ["schedule.optimizer=sdg", "sgd"]),
        ("dataset.holdout=-1", ["dataset.holdout=-1"]),
        ("dataset.eps=big", ["dataset.eps=big", "a number, in 1/255"]),
        ("record.keep=[first]", ["record.keep", "best"]),
        ("evaluation.restarts=0", ["evaluation.restarts=0"]),
        ("evaluation.attacks.pgd20.steps=0", ["evaluation.attacks.pgd20.steps=0"]),
        ("seed=-1", ["seed=-1"]),
        ("seed=one", ["seed=one", "whole number"]),
        pytest.param(f"seed={10**400}", ["seed=1000", "whole number"], id="beyond all floats"),
        ("attack=null", ["attack", "group=option"]),
        ("attack._target_=os.system", ["attack._target_=os.system", "this program"]),
        ("attack._target_=sat.rundir.record.os.System", ["attack._target_"]),
        ("model.weights=nowhere.pt", ["model.weights=nowhere.pt"]),
        ("seed=", ["seed"]),
        *(
            (f"{key}=", [f"{key}=: is empty; name one"])
            for key in ("dataset.extra", "model.weights", "record.root", "device", "evaluate")
        ),
        ("++logger.tensorboard=5", ["logger.tensorboard=5", "'logger=[tensorboard]'"]),
        ("++logger.tensorboard=null", ["logger.tensorboard=None", "'logger=[tensorboard]'"]),
        ("seed=${nothing}", ["nothing"]),
        ("gelu", ["gelu", "group=option"]),
        ("attack.eps=8/256", ["attack.eps=8/256", "0.25/255"]),
        ("dataset.root=~/data", ["dataset.root=~/data", "quote"]),
        ("dataset.eps=0.03", ["dataset.eps=0.03", "1/255"]),
        ("dataset.norm=l3", ["dataset.norm=l3", "linf or l2 or l1"]),
        ("evaluation.attacks.pgd20.batch_norm=train", ["pgd20.batch_norm=train", "eval"]),
        ("+attack@evaluation.attacks.mine=none", ["evaluation.attacks.mine", "no attack"]),
        ("schedule.clip=inf", ["schedule.clip=inf", "computes"]),
        ("objective.label_smoothing=2", ["objective.label_smoothing=2"]),
        ("dataset.image_size=100000", ["dataset.image_size=100000"]),
        ("evaluation.restarts=1e5", ["evaluation.restarts=100000", "1 to 10000"]),
        ("schedule.learning_rate=1e-12", ["schedule.learning_rate=1e-12", "no float32 weight"]),
        ("schedule.weight_decay=100", ["schedule.weight_decay=100", "0 to 10"]),
        ("model.std=[1e-9]", ["model.std=", "from 1e-4"]),
    ],
)
def test_bad_input_is_one_line_that_names_key_and_remedy(override, says):
    try:
        assert spec(override).name
    except Refused as refusal:
        line = str(refusal)
    except (HydraException, ValueError) as error:
        line = config.one_line(error)
    else:
        pytest.fail("was accepted")
    assert "\n" not in line and len(line) < 400
    for word in says:
        assert word in line, line


@pytest.mark.parametrize("word", ["+choices.x=1", "++choices=1", "+report=1", "~report"])
def test_what_a_config_has_beside_its_keys_is_no_key(word):
    with pytest.raises(Refused, match=f"^{re.escape(word)}: no such key; .*allowed: dataset, "):
        config.composed([word])


def test_a_name_tells_what_experiments_vary():
    def name(*overrides: str) -> str:
        return spec(*overrides).name.rpartition("-")[0]

    assert name("dataset.image_size=12") == "digits-12px-resnet10-silu-pgd1-40ep-s0"
    assert name("model.depth=26", "model.cardinality=8", "model.base_width=16") == (
        "digits-resnet26-8x16d-silu-pgd1-40ep-s0"
    )
    assert name("model.width=0.5", "attack.eps=12") == (
        "digits-resnet10-w0.5-silu-pgd1-eps12-40ep-s0"
    )
    assert name("schedule.ema=0.99") == "digits-resnet10-silu-pgd1-40ep-ema0.99-s0"
    assert name("schedule.epochs=80", "seed=3") == "digits-resnet10-silu-pgd1-80ep-s3"
    assert name("activation=surrogate_relu", "activation.outer=false") == (
        "digits-resnet10-relu-parametric_softplus-inner-pgd1-40ep-s0"
    )
    assert name("activation=celu", "activation.alpha=2") == "digits-resnet10-celu2-pgd1-40ep-s0"


def test_identity_is_what_decides_the_weights():
    base = spec()
    assert base.name == f"digits-resnet10-silu-pgd1-40ep-s0-{base.hash}"
    same = ["record.root=x", "record.checkpoint_minutes=1", "device=cuda", "schedule.epochs=40.0",
            "dataset.width=0.25", "evaluation=paper", "attack.eps=38", "schedule.epochs=4e1",
            "dataset.depth=10"]  # fmt: skip
    for override in same:
        assert spec(override).hash == base.hash, override
    other = ["seed=1", "schedule.epochs=41", "attack.steps=2", "activation=relu", "attack=fgsm",
             "model.stem=large", "dataset.limit=500", "validation.attack.steps=9",
             "schedule.precision=fp32", "dataset.eps=39", "dataset.holdout=0.2"]  # fmt: skip
    hashes = [spec(override).hash for override in other]
    assert len({base.hash, *hashes}) == len(other) + 1


def test_names_stay_inside_their_folder():
    for name in ("../../etc", "/etc/passwd", "a b=c,d", ".hidden"):
        run = spec("dataset=imagefolder", "dataset.root=/x", f"dataset.name='{name}'")
        told = readable(run.config, run.choices)
        assert Path(told).name == told and not told.startswith(".")
        assert not set("/=, ") & set(told)


def test_a_saved_config_gives_the_same_run():
    import yaml

    for overrides in ([], ["dataset=cifar10", "activation=smoothrelu", "attack=fgsm"],
                      ["evaluation=paper", "schedule.weight_decay=1e-5"]):  # fmt: skip
        run = spec(*overrides)
        again = check(yaml.safe_load(run.yaml()))
        assert (again.name, again.config) == (run.name, run.config)


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        (1, float, 1.0), (1.0, int, 1), (True, bool, True), (None, int | None, None),
        (3, int | None, 3), ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ("auto", float | Literal["auto"], "auto"), (2, float | Literal["auto"], 2.0),
        ([], list[str], []),
        (1, bool | Literal["auto"], Refused), (True, int, Refused), (True, float, Refused),
        ("1", int, Refused), (1.5, int, Refused), (float("nan"), int, Refused), (1, str, Refused),
        ([1], float, Refused), ("a", list[str], Refused), ([1, "a"], list[float], Refused),
        ({"_target_": "x"}, float, Refused), (None, float, Refused),
    ],
)  # fmt: skip
def test_values_get_their_declared_type(value, hint, expected):
    if expected is Refused:
        with pytest.raises(Refused, match="key="):
            convert(value, hint, "key")
    else:
        converted = convert(value, hint, "key")
        assert converted == expected and type(converted) is type(expected)
