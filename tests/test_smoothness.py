"""Which activations are smooth, told by their second derivative; the table in docs/activations.md.

Run as a program, `python tests/test_smoothness.py`, it writes the table anew.
"""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from sat import activations
from sat.config import CONF, options

PAGE = Path(__file__).parents[1] / "docs" / "activations.md"
EXTRA = ("elu alpha=2", "celu alpha=2")  # at another argument than the default
HEAD = ("| activation | f' | jump of f' | largest f'' | jump of f'' | smooth? |",
        "|---|---|---:|---:|---:|---|")  # fmt: skip


def module_of(name: str) -> nn.Module:
    option, *words = name.split()
    node = yaml.safe_load((CONF / "activation" / f"{option}.yaml").read_text())
    given = dict(word.split("=") for word in words)
    given = {key: float(value) for key, value in given.items()}
    cls = getattr(activations, node.pop("_target_").rpartition(".")[2])
    return cls(**{**node, **given}).double().requires_grad_(False)


def slope(module: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x).sum(), x)[0]


def curvature(module: nn.Module, x: Tensor, e: float = 1e-7) -> Tensor:
    return (slope(module, x + e) - slope(module, x - e)) / (2 * e)


def jump(f, near: float, far: float, least: float) -> tuple[float, float]:
    """The largest change of f over a distance that shrinks from 1e-2 to `least`, and where; what
    goes to 0 with the distance is no jump."""
    low, high, parts = near, far, int((far - near) / 1e-2)
    while True:
        x = torch.linspace(low, high, parts + 1, dtype=torch.float64)
        change = f(x).diff().abs()
        at = int(change.argmax())
        low, high = x[at].item(), x[at + 1].item()
        if (high - low) / 70 < least:
            return change[at].item(), (low + high) / 2
        width = high - low
        low, high, parts = low - width / 7, high + width / 7, 90


def traits(module: nn.Module) -> tuple[tuple[float, float], float, float, float]:
    """Lowest and highest f', its jump, the largest f'' beside that, and the jump of f''."""
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64) + 1e-6
    f1 = slope(module, x)
    kink, place = jump(lambda x: slope(module, x), -20.003, 20.01, 1e-11)
    kink = kink if kink > 1e-5 else 0.0
    x = x[(x - place).abs() > 1e-5] if kink else x
    f2 = curvature(module, x)
    # on a finer grid where it is largest
    top = x[f2.abs().argmax()] + torch.linspace(-1e-4, 1e-4, 2001, dtype=torch.float64)
    top = top[(top - place).abs() > 1e-5] if kink else top
    largest = curvature(module, top).abs().max().item()
    bend = 0.0
    if not kink:
        bend, _ = jump(lambda x: curvature(module, x), -20.003, 20.01, 1e-6)
        bend = bend if bend > 0.02 * largest else 0.0
    return (f1.min().item(), f1.max().item()), kink, largest, bend


def row(name: str) -> str:
    (low, high), kink, largest, bend = traits(module_of(name))
    smooth = "no: a kink" if kink else "once: f'' jumps" if bend else "yes"
    number = lambda value: f"{round(value, 2) + 0:g}"  # noqa: E731
    cells = [f"`{name}`", f"{number(low)} to {number(high)}", number(kink) if kink else "none",
             number(largest), "" if kink else number(bend) if bend else "none", smooth]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def names() -> list[str]:
    found = [name for name in options()["activation"] if name not in ("surrogate_relu", "keep")]
    return sorted([*found, *EXTRA])


def table() -> str:
    return "\n".join([*HEAD, *map(row, names())])


@pytest.mark.parametrize(
    "name, kink, largest, bend",
    [
        ("relu", 1, 0, 0), ("leaky_relu", 0.99, 0, 0), ("elu alpha=2", 1, 2, 0),
        ("elu", 0, 1, 1), ("celu alpha=2", 0, 0.5, 0.5), ("silu", 0, 0.5, 0),
        ("parametric_softplus", 0, 2.5, 0), ("smoothrelu", 0, 400, 400), ("smelu", 0, 0.5, 0.5),
        ("squareplus", 0, 0.25, 0), ("bent_identity", 0, 0.5, 0), ("rcr_af", 1, 2.5, 0),
        ("gelu", 0, 0.798, 0),
    ],
)  # fmt: skip
def test_traits_are_those_of_the_formulas(name, kink, largest, bend):
    """By hand: SiLU's f''(0) is 1/2, GELU's sqrt(2 / pi), softplus's alpha / 4, SmoothReLU's
    f''(0+) alpha, squareplus's f''(0) 1 / (2 sqrt(b))."""
    _, found_kink, found_largest, found_bend = traits(module_of(name))
    assert found_kink == pytest.approx(kink, abs=1e-5)
    assert found_largest == pytest.approx(largest, rel=0.01, abs=1e-5)
    assert found_bend == pytest.approx(bend, rel=0.02, abs=1e-5)


def test_the_page_holds_the_table():
    text = PAGE.read_text()
    assert table() in text, f"python {Path(__file__).name} writes it anew"


if __name__ == "__main__":
    found = re.sub(
        r"\| activation \| f'.*?(?=\n\n)", lambda _: table(), PAGE.read_text(), flags=re.S
    )
    PAGE.write_text(found)
    print(table())
