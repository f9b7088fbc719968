"""`evaluate=` a network that is none of this program's: a file that holds one whole, a function of
a package, a model of RobustBench. It becomes a run of no steps, like weights from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat import config
from sat.config import Spec
from sat.errors import Refused
from sat.evaluation import robustbench
from sat.models import programs
from sat.models.given import Make

START = tuple(f"model.{key}" for key in config.START)


def is_network(word: str) -> bool:
    """Whether what `evaluate=` names is a network, not a run or a file of weights."""
    path = Path(word).expanduser()
    if path.is_file():
        return programs.kind_of(path) is not None
    return robustbench.is_name(word) or bool(programs.FACTORY.fullmatch(word))


def of_network(cfg: Any, choices: Mapping[str, str], words: Mapping[str, str]) -> Spec:
    """The spec of the network that `cfg.evaluate` names; `words` are those of the command line, by
    their keys. Raises Refused, in one line, for what can't be opened."""
    for key, word in words.items():
        if key.split(".")[0] in ("model", "activation") and key not in START:
            raise Refused(
                f"{word}: the network of evaluate={cfg.evaluate} is what it is; of model there are"
                f" {', '.join(START)}"
            )
    plain = config.resolve(cfg)
    start = {key: plain["model"].get(key) for key in config.START}
    name = Path(cfg.evaluate).name
    plain["model"] = {"_target_": "sat.models.Given", "name": name, **start}
    plain["activation"] = {"_target_": "sat.activations.Keep"}
    plain["choices"] = {**choices, "model": "given", "activation": "keep"}
    try:
        make, content = _opened(cfg.evaluate, plain, typed="evaluate" in words)
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"evaluate={cfg.evaluate}: {error.strerror or error}") from None
    except ValueError as error:
        raise Refused(f"evaluate={cfg.evaluate}: {error}") from None
    spec = config.check(plain)
    return spec.bringing(model=spec.model.bringing(make, content))


def _opened(word: str, plain: dict[str, Any], typed: bool) -> tuple[Make, str]:
    """The network; of a model of RobustBench its card goes into the config."""
    path = Path(word).expanduser()
    if path.is_file():
        return programs.open_file(path)
    if robustbench.is_name(word):
        return robustbench.opened(word, plain, typed)
    return programs.open_factory(word, typed)
