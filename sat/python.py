"""`sat.train`: a run from Python, by the words of the command line."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sat import config, job, sweep
from sat.acceleration.auto import unsettled
from sat.config import Spec
from sat.data import Npz
from sat.errors import Refused, Stopped, refusing
from sat.evaluation.telling import summary
from sat.loggers import screen
from sat.models import Classifier, weights
from sat.models.content import content_of
from sat.models.custom import Given, described, refuse_other_words
from sat.run import execute
from sat.rundir.result import BEST, LAST, RunResult

NPZ = "dataset=npz"  # whose form data of the caller's own have


@dataclass(frozen=True)
class TrainedRun:
    """What `train` gives: the run's directory, its `result.json`, and the model that its held-out
    images chose (the last one where there were none, or it was not kept), in eval mode, on the CPU.
    Printed, it is the table of its accuracies.
    """

    path: Path
    result: RunResult
    model: Classifier

    def __repr__(self) -> str:
        return f"TrainedRun(path={str(self.path)!r}, result={self.result})"

    def __str__(self) -> str:
        return f"{self.path}\n{summary(self.result)}"


def train(words: Sequence[str], model: nn.Module | None = None, data: Any = None) -> TrainedRun:
    """Does one run as the command line does it from these words: composed, checked, begun or gone
    on with, recorded and measured; one that is finished is read.

    `model` is a network of the caller's own, in place of `model=...`: a copy is trained. `data` are
    images in place of `dataset=...`, in any form that `sat.data.arrays.arrays_of` takes.

    Raises Refused, a ValueError of one line, for what the command line refuses; Fault where the run
    can't go on; KeyboardInterrupt after a checkpoint where it is stopped.
    """
    screen.set_up()
    screen.forget()
    spec = spec_of([*words], model, data)
    try:
        with torch.random.fork_rng(), unsettled():
            execute(spec, [*words])
    except Stopped as error:
        raise KeyboardInterrupt(f"{error}; the same call goes on from here") from None
    finally:
        screen.stage()
    directory = Path(spec.record.root) / spec.name
    result = RunResult.read(directory)
    assert result is not None  # else the run has raised
    kept = (directory / "checkpoints" / f"{BEST}.pt").exists()  # see record.keep
    which = BEST if kept and result.best is not None else LAST
    return TrainedRun(directory, result, weights.load(directory, which, model=model))


def spec_of(words: list[str], model: nn.Module | None = None, data: Any = None) -> Spec:
    """The checked run that the words ask for, of a network and images that its caller brings."""
    for word in words:
        key, is_override, _ = word.partition("=") if isinstance(word, str) else ("", "", "")
        if not is_override or key.startswith("-") or key.lstrip("+~") in ("evaluate", "hydra.mode"):
            text = "" if isinstance(word, str) else ' as text: sat.train("activation=gelu")'
            raise Refused(f"{word}: sat.train does one training; write key=value{text}")
    if data is not None:
        told = [word for word in words if word.startswith(("dataset=", "dataset.path="))]
        if other := [word for word in told if word != NPZ]:
            raise Refused(f"{other[0]}: data are given; drop it, or data")
        words = [*dict.fromkeys([NPZ, *words])]
    if model is not None:
        if not isinstance(model, nn.Module):
            raise Refused(f"model: {type(model).__name__}; give a torch.nn.Module")
        _check_trainable(model)
        refuse_other_words(words, ("model",), "the model given")
    plain = _composed(words)
    if model is None:
        spec = config.check(plain)
    else:
        plain["model"] = described(plain["model"], type(model).__name__)
        plain["choices"] = {**plain["choices"], "model": "given"}
        spec, own = config.check(plain), deepcopy(model)
        given: Given = spec.model
        frozen = [name for name, weight in own.named_parameters() if not weight.requires_grad]
        content = content_of((own, frozen) if frozen else own)
        given = given.bringing(lambda image: deepcopy(own), content)
        spec = spec.bringing(model=given)
    if not spec.record.keep:
        raise Refused("record.keep=[]: sat.train gives the model back; keep last, or best")
    if data is None:
        return spec
    images: Npz = spec.dataset
    with refusing(""):
        return spec.bringing(dataset=images.holding(data))


def _check_trainable(model: nn.Module) -> None:
    """Raises Refused for a network of which no step would change anything."""
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise Refused(f"model: {name} is a program; give the module that it was made of")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise Refused(f"model: {name} has no parameter that is trained (requires_grad)")


def _composed(words: list[str]) -> dict[str, Any]:
    """The plain config of these words."""
    found: list[dict[str, Any]] = []

    def look(cfg: Any, choices: dict[str, str], overrides: list[str]) -> None:
        chosen = {group: option for group, option in choices.items() if group in job.GROUPS}
        found.append(job.resolved(cfg, chosen, overrides))

    sweep.each_job(words, look)
    return found[0]
