"""`evaluate=` a network that is none of this program's: a file that holds one whole, a function of
a package, a model of RobustBench. It becomes a run of no steps, like weights from a file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sat import config
from sat.config import Spec, plugins
from sat.errors import Refused
from sat.evaluation import robustbench
from sat.models import programs
from sat.models.custom import Make, described, refuse_other_words

# Groups that no measurement reads: verdicts have a precision and batches of their own.
TRAININGS = "attack augment metrics objective regulariser sampler schedule validation".split()
TRAININGS += ["weight_attack"]


def is_network(word: str) -> bool:
    """Whether what `evaluate=` names is a network, not a run or a file of weights."""
    path = Path(word).expanduser()
    if path.is_file():
        return programs.kind_of(path) is not None
    return robustbench.is_name(word) or bool(programs.FACTORY.fullmatch(word))


def of_network(cfg: Any, choices: Mapping[str, str], overrides: Sequence[str]) -> Spec:
    """The spec of the network that `cfg.evaluate` names. Raises Refused, in one line, for what
    can't be opened."""
    refuse_training(overrides, cfg.evaluate)
    whose = f"the network of evaluate={cfg.evaluate}"
    refuse_other_words(overrides, ("model", "activation"), whose)
    plain = config.resolve(cfg)
    plain["model"] = described(plain["model"], Path(cfg.evaluate).name)
    plain["activation"] = {"_target_": "sat.activations.Keep"}
    plain["choices"] = {**choices, "model": "given", "activation": "keep"}
    typed = plugins.is_typed() and any(word.startswith("evaluate=") for word in overrides)
    try:
        make, content = _opened(cfg.evaluate, plain, typed)
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"evaluate={cfg.evaluate}: {error.strerror or error}") from None
    except ValueError as error:
        raise Refused(f"evaluate={cfg.evaluate}: {error}") from None
    spec = config.check(plain)
    return spec.bringing(model=spec.model.bringing(make, content))


def refuse_training(overrides: Sequence[str], place: str) -> None:
    """Raises Refused for a word of a group that a training alone reads."""
    for word in overrides:
        if re.fullmatch(rf"[+~]*({'|'.join(TRAININGS)})([./=].*)?", word):
            raise Refused(
                f"{word}: nothing is trained with evaluate={place}; what measures it is"
                " evaluation=OPTION, and of its attacks evaluation.attacks.<name>.eps=... and so on"
            )


def _opened(word: str, plain: dict[str, Any], typed: bool) -> tuple[Make, str]:
    """The network; of a model of RobustBench its card goes into the config."""
    path = Path(word).expanduser()
    if path.is_file():
        if not typed:
            raise ValueError("runs what is in it, and is opened only where it is typed")
        return programs.open_file(path)
    if robustbench.is_name(word):
        return robustbench.opened(word, plain, typed)
    return programs.open_factory(word, typed)
