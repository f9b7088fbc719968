"""What the command line refuses, the classes refuse: every annotated choice of the package."""

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Literal, get_args

import pytest
import torch

import sat
import sat.activations
from sat.arguments import check_arguments, check_choice, choices_of
from sat.attacks import APGD, FAB, FGSM, PGD, AutoAttack, Curve, FastAutoAttack, Multi, Square
from sat.attacks.ball import Ball
from sat.attacks.transfer import Transfer
from sat.evaluation.settings import Validation


def classes():
    """Every class of the package whose fields list choices."""
    for found in pkgutil.walk_packages(sat.__path__, "sat."):
        module = importlib.import_module(found.name)
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == found.name:
                if (
                    dataclasses.is_dataclass(kind)
                    and not inspect.isabstract(kind)
                    and choices_of(kind)
                ):
                    yield kind


EVERY = sorted(classes(), key=lambda kind: kind.__qualname__)


def sound(kind):
    """An instance as it comes; what has no default gets the first of its choices, or a stand-in."""
    stand_ins = {
        Ball: {"eps": 0.1},
        Curve: {"attack": PGD(8, 1), "values": (1.0,)},
        Multi: {"members": {"linf": 8, "l2": 128}},
        Validation: {"attack": PGD(8, 1)},
        Transfer: {"method": PGD(8, 1), "run_name": "other", "weights": "0", "place": "other"},
    }
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
                and f.default_factory is dataclasses.MISSING]  # fmt: skip
    hints, given = choices_of(kind), dict(stand_ins.get(kind, {}))
    for name in required:
        if name in hints:
            given[name] = get_args(hints[name])[0]
    return kind(**given)


def test_there_are_such_classes():
    assert {PGD, FGSM, AutoAttack, FastAutoAttack, Curve, Ball} <= set(EVERY)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__qualname__)
def test_a_choice_that_is_none_is_refused_where_the_class_is_made(kind, monkeypatch):
    monkeypatch.setattr("sat.loggers.base.find_spec", lambda name: name)  # trackers are extras
    made = sound(kind)
    for name in choices_of(kind):
        for wrong in ("Linf", "no such thing", 0.5j):
            with pytest.raises(ValueError, match=f"{name}="):
                dataclasses.replace(made, **{name: wrong})


@pytest.mark.parametrize("kind", [PGD, FGSM, FastAutoAttack, AutoAttack])
@pytest.mark.parametrize("norm", ["Linf", "L1", "L2", "inf", "", None, 2])
def test_a_norm_is_spelt_as_it_is_or_refused(kind, norm):
    """`PGD(norm="Linf")` ran L2, `FastAutoAttack(norm="Linf")` attacked nothing."""
    with pytest.raises(ValueError, match=f"norm={norm}: "):
        kind(eps=38, norm=norm)
    assert kind(eps=38, norm="l2").norm == "l2"


@pytest.mark.parametrize(
    "hint, right, wrong",
    [
        (Literal["a", "b"], ["a"], ["A", "c", None, 1, True]),
        (float | Literal["auto"], [0.5, 2, "auto"], ["0.5", True, None]),
        (bool | Literal["auto"], [True, "auto"], [1, 0, "true"]),
        (int | Literal["auto"] | None, [1, "auto", None], [1.0, True, "x"]),
        (Literal[1, 2], [1], [True, 1.0, "1"]),
    ],
)
def test_what_a_union_takes(hint, right, wrong):
    for value in right:
        check_choice("key", value, hint)
    for value in wrong:
        with pytest.raises(ValueError, match=f"^key={value}: choose from "):
            check_choice("key", value, hint)


def test_the_nearest_name_is_told():
    with pytest.raises(ValueError, match="norm=Linf: choose from linf, l2, l1; did you mean linf?"):
        PGD(norm="Linf")


def test_arguments_of_a_function_are_checked_as_well():
    def made(kind: Literal["a", "b"], count: int = 1) -> None: ...

    check_arguments(made, {"kind": "a", "count": "anything"})
    with pytest.raises(ValueError, match="kind=c: "):
        check_arguments(made, {"kind": "c"})


MODULES = [getattr(sat.activations, name) for name in sat.activations.__all__]
LISTED = [kind for kind in MODULES if inspect.isclass(kind) and choices_of(kind.__init__)]


@pytest.mark.parametrize("kind", LISTED, ids=lambda kind: kind.__name__)
def test_activations_refuse_too(kind):
    assert {sat.activations.GELU, sat.activations.SurrogateReLU} <= {*LISTED}
    for name in choices_of(kind.__init__):
        with pytest.raises(ValueError, match=f"{name}=tan: "):
            kind(**{name: "tan"})


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"steps": 2.5}, "steps=2.5: must be a whole number"),
        ({"steps": "3"}, "steps=3: must be a whole number"),
        ({"steps": True}, "steps=True: must be a whole number"),
        ({"eps": None}, "eps=None: must be a number, in 1/255"),
        ({"eps": True}, "eps=True: must be a number, in 1/255"),
    ],
)
def test_a_number_is_one_where_the_class_is_made(wrong, says):
    with pytest.raises(ValueError, match=says):
        PGD(**wrong)


@pytest.mark.parametrize("attack", [PGD(8), APGD(8), FGSM(8), Square(8), FAB(8)], ids=str)
@pytest.mark.parametrize("change", [lambda x: 2 * x - 1, lambda x: (255 * x).byte()])
def test_images_that_are_normalised_or_bytes_are_refused(attack, change):
    """Cut to [0, 1] they would be attacked as images that nobody has."""
    x, model = torch.rand(2, 1, 4, 4), torch.nn.Flatten()
    with pytest.raises(ValueError, match=r"float images in \[0, 1\]"):
        attack(model, change(x), torch.zeros(2, dtype=torch.long))
