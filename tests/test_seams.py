"""Each member of each seam, as a type checker sees it: mypy reads this file, and refuses here what
does not keep to its contract."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from sat.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    Attack,
    AutoAttack,
    Clean,
    FastAutoAttack,
    Free,
    Multi,
    Square,
    Transfer,
)
from sat.data import (
    IDBH,
    Augment,
    CutMix,
    Cutout,
    Jitter,
    MixUp,
    RandAugment,
    Standard,
    TimmAugment,
    Unchanged,
)
from sat.data.samplers import Epochs, Mixture, Sampler
from sat.loggers import Logger
from sat.loggers.mlflow import MLflow
from sat.loggers.tensorboard import TensorBoard
from sat.loggers.wandb import WandB
from sat.objectives import (
    AWP,
    ELLE,
    MART,
    TRADES,
    AdaptiveELLE,
    Adversarial,
    Consistency,
    GradAlign,
    GradientNorm,
    Objective,
    Regulariser,
    Unperturbed,
    Unregularised,
    WeightAttack,
)
from sat.training import metrics
from sat.training.decay import Constant, Cosine, Decay, OneCycle, Step

ATTACKS: list[Attack] = [
    APGD(), FAB(), FGSM(), PGD(), AutoAttack(), Clean(), FastAutoAttack(), Free(), Square(),
    Multi({"linf": 8, "l2": 128}), Transfer(PGD(), "run-1", "ab", "outputs/run-1"),
]  # fmt: skip
OBJECTIVES: list[Objective] = [Adversarial(), Consistency(), GradientNorm(), MART(), TRADES()]
REGULARISERS: list[Regulariser] = [AdaptiveELLE(), ELLE(), GradAlign(), Unregularised()]
WEIGHT_ATTACKS: list[WeightAttack] = [AWP(), Unperturbed()]
AUGMENTS: list[Augment] = [
    CutMix(), Cutout(), IDBH(), Jitter(), MixUp(), RandAugment(), Standard(), TimmAugment(),
    Unchanged(),
]  # fmt: skip
SAMPLERS: list[Sampler] = [Epochs(), Mixture()]
METRICS: list[metrics.Metrics] = [metrics.Metrics(), metrics.GradientNorm()]
DECAYS: list[Decay] = [Constant(), Cosine(), OneCycle(), Step()]
LOGGERS: list[type[Logger]] = [MLflow, TensorBoard, WandB]

CONF = Path(__file__).parents[1] / "conf"
SEAMS: dict[str, Sequence[object]] = {
    "attack": ATTACKS, "objective": OBJECTIVES, "regulariser": REGULARISERS, "augment": AUGMENTS,
    "weight_attack": WEIGHT_ATTACKS, "sampler": SAMPLERS, "metrics": METRICS,
    "schedule/decay": DECAYS,
}  # fmt: skip


@pytest.mark.parametrize("group", SEAMS)
def test_every_option_stands_here(group):
    here = {type(member).__name__ for member in SEAMS[group]}
    files = (CONF / group).glob("*.yaml")
    named = (yaml.safe_load(file.read_text())["_target_"] for file in files)
    assert {name.rpartition(".")[2] for name in named} <= here


def test_every_logger_stands_here():
    assert len(LOGGERS) == len([*(CONF / "logger").glob("*.yaml")])
