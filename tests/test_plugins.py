"""A package of the user's own, outside of this checkout: one member of each group, chosen by name.

What a member has to be is what is written here, and nothing else: a class, and a YAML file.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import warm
from conftest import ROOT, TINY, command
from messages import RESUMED

from sat.config import plugins

CODE = '''
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sat.attacks.base import frozen, input_gradient
from sat.data.memory import Arrays, MemorySet
from sat.loggers import Logger
from sat.objectives import Objective, Regulariser
from sat.rng import seed_of
from sat.training.decay import Decay
from sat.training.metrics import Metrics


class Softsign(nn.Module):
    """x * (1 + x / (1 + |x|)) / 2: a gate without an exponential."""

    def __init__(self, inplace: bool = False, slope: float = 1.0):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return x * (1 + F.softsign(self.slope * x)) / 2


@dataclass(frozen=True, slots=True)
class MIFGSM:
    """The momentum iterative method (Dong et al. 2018)."""

    eps: float = 8.0
    steps: int = 2
    decay: float = 1.0
    norm: str = "linf"
    batch_norm: str = "eval"
    loss: str = "auto"

    def __call__(self, model, x, y, rng=None, progress=None):
        eps, step = self.eps / 255, self.eps / 255 / self.steps
        x_adv, momentum = x, torch.zeros_like(x)
        with frozen(model, self.batch_norm):
            for _ in range(self.steps):
                gradient = input_gradient(model, x_adv, y)
                size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
                momentum = self.decay * momentum + gradient / size
                x_adv = (x_adv + step * momentum.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        return x_adv


@dataclass(frozen=True)
class Half(Objective):
    """Half of the loss on clean images, half of that on adversarial ones (Goodfellow 2015)."""

    share: float = 0.5

    def __call__(self, model, x, x_adv, y, epoch=None):
        logits = model(x_adv)
        clean = F.cross_entropy(model(x), y)
        return self.share * clean + (1 - self.share) * F.cross_entropy(logits, y), logits


@dataclass(frozen=True)
class Pairing(Regulariser):
    """Adversarial logits near the clean ones (Kannan et al. 2018): how far their distance is from
    its running mean, which is kept."""

    weight: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "mean", torch.zeros(()))

    def __call__(self, model, x, x_adv, y, rng, epoch=None):
        return self.weight * ((model(x_adv) - model(x)).square().mean() - self.mean).square()

    def settle(self, x, batch):
        pass

    def learn(self, sums, broken):
        self.mean.copy_(torch.where(broken, self.mean, self.mean.lerp(sums[2] / sums[3], 0.5)))

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean.copy_(state["mean"])


@dataclass(frozen=True)
class Uphill:
    """Sharpness-aware minimisation (Foret et al. 2021)."""

    rho: float = 0.05

    def perturb(self, model, loss, epoch):
        loss()
        moved = [p for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in moved])
        for parameter in moved:
            parameter.add_(parameter.grad * (self.rho / norm))


@dataclass(frozen=True)
class Plain:
    """A few convolutions."""

    depth: int = 2
    width: float = 1.0

    def __call__(self, channels, classes, size):
        layers, width = [], int(16 * self.width) or 4
        for k in range(self.depth):
            layers += [nn.Conv2d(channels if k == 0 else width, width, 3, padding=1),
                       nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(width, classes))


@dataclass(frozen=True)
class Bars(MemorySet):
    """Images 8x8 of one bright row or column, 16 classes."""

    holdout: float = 30
    crop: int = 0
    flip: bool = False

    def load(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(240) % 16
        images = torch.randint(0, 60, (240, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist()):
            (image[0] if label < 8 else image[0].T)[label % 8] = 200
        names = tuple(map(str, range(16)))
        return Arrays(images[:180], labels[:180], images[180:], labels[180:], names, "bars")

    def fingerprint(self):
        return None  # always the same


@dataclass(frozen=True)
class WithReplacement:
    """Images drawn anew for each step, some twice."""

    def __call__(self, seed, step, batch_size, images):
        generator = torch.Generator().manual_seed(seed_of(seed, "mine", step))
        return torch.randint(sum(images), (batch_size,), generator=generator)


@dataclass(frozen=True)
class Halves:
    """The upper half of an image over the lower half of the next one."""

    crops, partners = False, True

    def __call__(self, x, y, rng):
        (x, other), (y, label) = x.chunk(2), y.chunk(2)
        half = x.shape[2] // 2
        return torch.cat([x[:, :, :half], other[:, :, half:]], 2), (y + label) / 2


@dataclass(frozen=True)
class Polynomial(Decay):
    """What is left, to a power."""

    power: float = 2.0

    def __call__(self, progress):
        return progress.left**self.power


@dataclass(frozen=True)
class WrongShare(Metrics):
    """The share of adversarial images that the step got wrong."""

    def __call__(self, state):
        _, right, _, images = state.sums.unbind()
        return {**super().__call__(state), "train/wrong": (images - right, images)}


class Lines(Logger):
    """A line a curve's point; cut back with the run. Kills the run at its point MINE_KILL."""

    files = ("lines.txt",)

    def __init__(self, prefix: str = ""):
        self.prefix = prefix

    def open(self, about):
        self.path = about.directory / "lines.txt"

    def scalars(self, values, images):
        with open(self.path, "a") as file:
            for tag, value in values.items():
                if "seconds" not in tag and "images_per_second" not in tag:
                    file.write(json.dumps([self.prefix + tag, images, value]) + "\\n")
        if images >= float(os.environ.get("MINE_KILL", "inf")):
            os.kill(os.getpid(), signal.SIGKILL)
'''

OPTIONS = {
    "activation/softsign.yaml": "_target_: mypackage.Softsign\nslope: 2.0\n",
    "attack/mifgsm.yaml": "_target_: mypackage.MIFGSM\neps: ${dataset.eps}\nsteps: 2\n",
    "objective/half.yaml": "_target_: mypackage.Half\n",
    "regulariser/pairing.yaml": "_target_: mypackage.Pairing\nweight: 0.5\n",
    "weight_attack/uphill.yaml": "_target_: mypackage.Uphill\nrho: 0.05\n",
    "model/plain.yaml": "_target_: mypackage.Plain\ndepth: 2\nwidth: ${dataset.width}\n"
    "weights: null\nmean: null\nstd: null\n",
    "dataset/bars.yaml": "_target_: mypackage.Bars\nlimit: null\nholdout: 30\n"
    "eps: 20\nnorm: linf\ndepth: 10\nwidth: 0.25\n",
    "schedule/bars.yaml": "defaults:\n  - digits\n  - _self_\n\nepochs: 3.0\nbatch_size: 32\n",
    "sampler/with_replacement.yaml": "_target_: mypackage.WithReplacement\n",
    "augment/halves.yaml": "_target_: mypackage.Halves\n",
    "schedule/decay/polynomial.yaml": "_target_: mypackage.Polynomial\npower: 2.0\n",
    "metrics/wrong.yaml": "_target_: mypackage.WrongShare\n",
    "logger/lines.yaml": "lines:\n  _target_: mypackage.Lines\n  prefix: my/\n",
}
EACH = [
    "activation=softsign", "attack=mifgsm", "objective=half", "regulariser=pairing",
    "weight_attack=uphill", "model=plain", "dataset=bars", "sampler=with_replacement",
    "augment=halves", "schedule/decay=polynomial", "metrics=wrong",
    "'logger=[tensorboard,lines]'",
]  # fmt: skip
EACH = [word.strip("'") for word in EACH]
FIXED = ["schedule.precision=fp32", "validation.attack.steps=2", "evaluation.masking_checks=0",
         "evaluation.attacks.pgd20.steps=3", "evaluation.limit=50", "device=cpu"]  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The package and its options in a folder of their own; allowed in this process."""
    folder = tmp_path / "mine"
    (folder / "mypackage").mkdir(parents=True)
    (folder / "mypackage" / "__init__.py").write_text(CODE)
    for name, text in OPTIONS.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(plugins.VARIABLE, "mypackage")
    yield folder
    sys.modules.pop("mypackage", None)


def lines_of(run: Path) -> list[list]:
    return [json.loads(line) for line in (run / "lines.txt").read_text().splitlines()]


@pytest.mark.parametrize("member", EACH)
def test_a_member_of_each_group_trains_without_an_edit_here(sat, mine, member):
    size = [w for w in TINY if not w.startswith("model.width") or member != "model=plain"]
    if member == "dataset=bars":
        size = [*FIXED, "model.width=0.0625", "schedule.epochs=1"]
    done = sat("--config-dir", str(mine / "conf"), *size, member, tiny=False)
    assert done.code == 0, done.err
    assert done.result["status"] == "finished"
    if member == "attack=mifgsm":
        assert "-mifgsm2-" in done.run.name and done.result["attack"]["option"] == "mifgsm"
    if member in ("regulariser=pairing", "weight_attack=uphill"):
        group, option = member.split("=")
        assert f"-{option}" in done.run.name and f"{group}: {option} " in done.out
        assert done.result[group]["option"] == option
    if member == "metrics=wrong":
        rows = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
        shares = [(r["train/wrong"], r["train/adversarial_accuracy"]) for r in rows
                  if "train/wrong" in r]  # fmt: skip
        assert shares and all(abs(wrong + right - 1) < 1e-6 for wrong, right in shares)
    if "lines" in member:
        told = lines_of(done.run)
        assert ["my/val/clean", 384] in [[tag, images] for tag, images, _ in told]


def test_all_together_are_killed_resumed_and_reported(sat, mine, tmp_path):
    """The resumed run has the weights of one that was never stopped, to the bit, and tells its
    trackers no step twice; the report imports nothing of the package."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["--config-dir", str(mine / "conf"), *EACH, *FIXED, "record.checkpoint_minutes=0"]
    paths = os.pathsep.join([str(ROOT), str(mine)])
    assert sat(*words, tiny=False, root=whole).code == 0
    struck = warm.Command(command(*words, f"record.root={killed}"), mine,
                          {**os.environ, "PYTHONPATH": paths, "MINE_KILL": "150"})  # fmt: skip
    assert struck.wait(300) == -9
    done = sat(*words, tiny=False, root=killed)
    assert done.code == 0 and RESUMED in done.out, done.err
    (one,), (two,) = (list(root.glob("bars-plain2*")) for root in (whole, killed))
    assert one.name == two.name and "softsign-mifgsm2" in one.name
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (one, two)]
    weights = [state["model"] for state in states]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert lines_of(one) == lines_of(two)
    given = [sys.executable, str(ROOT / "scripts" / "report.py"), str(killed)]
    allowed = {k: v for k, v in os.environ.items() if k != plugins.VARIABLE}
    report = warm.Command(given, tmp_path, allowed | {"PYTHONPATH": str(ROOT)})
    out, err = report.communicate(300)
    assert report.returncode == 0, err
    assert "attack mypackage:mifgsm" in out and "softsign" in out, out


@pytest.mark.parametrize("variable", ["", "otherpackage"])
def test_a_package_that_is_not_allowed_is_refused_whoever_names_it(
    sat, mine, monkeypatch, variable
):
    monkeypatch.setenv(plugins.VARIABLE, variable)
    done = sat("--config-dir", str(mine / "conf"), "attack=mifgsm")
    assert done.code == 2 and not done.runs
    assert done.err.startswith("! attack._target_=mypackage.MIFGSM: is outside of this program")
    assert "SAT_PLUGINS=mypackage" in done.err and "mypackage" not in sys.modules


def test_a_copied_run_directory_is_not_trusted_either(sat, mine, monkeypatch):
    done = sat("--config-dir", str(mine / "conf"), "attack=mifgsm")
    assert done.code == 0
    monkeypatch.delenv(plugins.VARIABLE)
    sys.modules.pop("mypackage")
    again = sat(f"evaluate={done.run}", "evaluation=clean", tiny=False)
    assert again.code == 2 and "SAT_PLUGINS=mypackage" in again.err
    assert "mypackage" not in sys.modules


def test_an_installed_package_with_an_entry_point_is_allowed(sat, mine, monkeypatch):
    monkeypatch.delenv(plugins.VARIABLE)
    installed = mine / "mypackage-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[sat.plugins]\nmine = mypackage\n")
    assert plugins.allowed() == {"mypackage"}
    done = sat("--config-dir", str(mine / "conf"), "attack=mifgsm", "schedule.epochs=0.2")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "name, says",
    [
        ("mypackage.Nothing", "no such class"),
        ("mypackage.nothing.Nothing", "no such class"),
        ("mypackage.os.getpid", "no such class"),
        ("mypackage.seed_of", "is no class of mypackage"),
        ("mypackage.Path", "is no class of mypackage"),
        ("mypackage", "must name a class"),
    ],
)
def test_only_classes_of_the_package_itself_are_taken(sat, mine, name, says):
    done = sat(f"attack._target_={name}")
    assert done.code == 2 and done.err.startswith(f"! attack._target_={name}: {says}"), done.err


BROKEN = {
    "moves": """
from dataclasses import dataclass
import torch
@dataclass(frozen=True)
class Broken:
    eps: float = 8.0
    norm: str = "linf"
    batch_norm: str = "eval"
    loss: str = "auto"
    def __call__(self, model, x, y, rng=None, progress=None):
        model(x)
        return x
""",
}
BROKEN["lacks"] = BROKEN["moves"].replace('    norm: str = "linf"\n', "")
BROKEN["signature"] = BROKEN["moves"].replace(", rng=None, progress=None", ", draws=None")
BROKEN["far"] = BROKEN["moves"].replace("return x", "return (x + 0.5).clamp(0, 1)").replace(
    "        model(x)\n", "")  # fmt: skip
BROKEN["range"] = BROKEN["moves"].replace("return x", "return x + self.eps / 255").replace(
    "        model(x)\n", "")  # fmt: skip
SAYS = {
    "moves": "moves the model's batch-norm statistics",
    "lacks": "lacks norm",
    "signature": "must be called as attack(model, x, y, rng=None, progress=None)",
    "far": "attack.eps=8: the attack moves an image by 127",
    "range": "leaves the range [0, 1]",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_attack_that_breaks_the_contract_is_refused_before_training(sat, mine, fault):
    """In one line; its batch norm is tried in the mode of the training."""
    (mine / "mypackage" / "__init__.py").write_text(BROKEN[fault])
    (mine / "conf" / "attack" / "mifgsm.yaml").write_text("_target_: mypackage.Broken\n")
    done = sat("--config-dir", str(mine / "conf"), "attack=mifgsm")
    assert done.code == 2 and not done.runs
    (line,) = done.err.strip().splitlines()
    assert line.startswith("! attack") and SAYS[fault] in line


# mistakes in a class ------------------------------------------------------------------------------

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from torch import nn
from sat.objectives import Objective
if TYPE_CHECKING:
    from collections.abc import Sequence
"""
GATE = """
class Broken(nn.Module):
    def __init__(self, inplace: bool = False, slope: float = 1.0):
        super().__init__()
        self.slope = slope
    def forward(self, x):
        return x * (self.slope * x).sigmoid()
"""
NET = """
class Part(nn.Module):
    def __init__(self):
        self.width = 4
class Broken:
    def __call__(self, channels, classes, size):
        return """
LOSS = """
class Broken(Objective):
    def __call__(self, model, x, x_adv, y, epoch=None):
        """
TRACKER = """
class Broken:
    files = """


def gate(before: str, after: str) -> tuple[str, str]:
    """A group, and a class of it: that of an activation with a mistake."""
    assert before in GATE
    return "activation", GATE.replace(before, after)


def failing(error: str) -> tuple[str, str]:
    return gate("super().__init__()", f"raise {error}  # here")


SET_UP = "no torch.nn.Module, or it, or a module in it, lacks super().__init__() in its __init__"
BY_NAME = "can't be given by name, as keys are; write each out, without *, ** and /"
UNREAD = "arguments can't be read (NameError: name 'Sequence' is not defined); import what"
# What the line says; of a fault in the code, where it is as well.
MISTAKES = [
    (gate("super().__init__()", "pass"), f"activation: Broken is {SET_UP}"),
    (gate("(nn.Module)", ""), f"activation: Broken is {SET_UP}"),
    (gate("1.0)", "1.0, **o: int)"), f"activation._target_=Broken: its argument **o {BY_NAME}"),
    (gate("inplace: bool = False", "*o"), f"activation._target_=Broken: its argument *o {BY_NAME}"),
    (gate("1.0)", "1.0, /)"), f"activation._target_=Broken: its argument inplace {BY_NAME}"),
    (gate(": float", ": Sequence"), f"activation._target_=Broken: its {UNREAD}"),
    (gate("bool = False, slope: float = 1.0", "bool"), "activation.inplace: is missing"),
    (gate(": float = 1.0", "=nn.ReLU"), "must be a number, a word, a list or a mapping"),
    (gate("= slope", "= nowhere  # here"), "NameError: name 'nowhere' is not defined"),
    (failing("RuntimeError('boom')"), "RuntimeError: boom"),
    (failing("TypeError('boom')"), "TypeError: boom"),
    (failing("OSError('boom')"), "OSError: boom"),
    (failing("SystemExit(0)"), "SystemExit: 0"),
    (("model", NET + "Part()"), f"model: Part is {SET_UP}"),
    (("model", NET + "nn.Sequential(nn.ReLU(), Part())"), f"model: Sequential is {SET_UP}"),
    (("model", NET + "nn.ReLU"), f"model: ReLU is {SET_UP}"),
    (("model", NET + "self.layers  # here"), "AttributeError: 'Broken' object has no attribute"),
    (("objective", LOSS + "raise ValueError('boom')  # here"), "ValueError: boom"),
    (("objective", LOSS + "raise SystemExit  # here"), "SystemExit"),
    (("logger", TRACKER + "'a.txt'"), "logger.mine: files=a.txt: must be a tuple of patterns"),
    (("logger", TRACKER + "('/a.txt',)"), "logger.mine: files=('/a.txt',): must be a tuple of pa"),
]


def option(mine: Path, group: str, code: str) -> list[str]:
    """The words of a command line that take the class Broken of this code."""
    (mine / "mypackage" / "__init__.py").write_text(HEAD + code)
    text = "_target_: mypackage.Broken\n"
    text += "weights: null\nmean: null\nstd: null\n" if group == "model" else ""
    text = "mine:\n  " + text if group == "logger" else text
    (mine / "conf" / group / "mine.yaml").write_text(text)
    return [
        "--config-dir",
        str(mine / "conf"),
        f"{group}={'[mine]' if group == 'logger' else 'mine'}",
    ]


@pytest.mark.parametrize("part, says", MISTAKES)
def test_a_mistake_in_a_class_is_one_line(sat, mine, part, says):
    size = [word for word in TINY if part[0] != "model" or not word.startswith("model.width")]
    done = sat(*size, *option(mine, *part), tiny=False)
    (line,) = done.err.strip().splitlines()
    lines = (HEAD + part[1]).splitlines()
    here = [number for number, text in enumerate(lines, 1) if text.endswith("# here")]
    place = "".join(f"mypackage, line {number}: " for number in here)
    assert line.startswith(f"! {place}") and says in line, line
    assert done.code == (1 if here else 2)


def test_an_argument_without_a_type_is_taken_as_it_is(sat, mine):
    code = GATE.replace(": float = 1.0", "=(1.0,)").replace("= slope", "= slope[0]")
    words = [*option(mine, "activation", code), "+activation.slope=[2]", "schedule.epochs=0.2"]
    done = sat(*words)
    assert done.code == 0, done.err
    assert "slope:\n  - 2\n" in (done.run / "config.yaml").read_text()


def test_a_tracker_that_says_little_need_not_derive_from_ours(sat, mine):
    """A method that it lacks shows nothing."""
    code = "class Broken:\n    def scalars(self, values, images):\n        print('told', images)"
    done = sat(*option(mine, "logger", code))
    assert done.code == 0 and "told 384" in done.out and not done.err, done.err
