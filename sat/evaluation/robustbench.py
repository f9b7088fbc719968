"""RobustBench (Croce et al. 2021) both ways: its models measured here beside their cards, and its
`benchmark` on models of this program.

Its wheel 1.1.1 asks for timm 1.0.9 alone, though it runs with later ones, and imports `autoattack`,
which is not on PyPI; so it is installed by hand (INSTALL) and given `pyautoattack` under that name.
"""

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import metadata, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from sat.config import plugins
from sat.errors import Refused
from sat.models.card import IMAGES
from sat.models.content import content_of
from sat.models.custom import Make
from sat.models.programs import tensors_alone

log = logging.getLogger("sat")
PREFIX = "robustbench:"
INSTALL = (
    "pip install --no-deps robustbench==1.1.1; pip install gdown geotorch torchdiffeq pandas"
    " requests 'setuptools<81'"
)
DATASETS = {"cifar10": "cifar10", "cifar10_subset": "cifar10", "cifar100": "cifar100",
            "imagenet": "imagenet"}  # fmt: skip
THREATS = {"linf": "Linf", "l2": "L2"}


def is_name(word: str) -> bool:
    """Whether `evaluate=` names a model of RobustBench."""
    return word.startswith(PREFIX)


def opened(word: str, plain: dict[str, Any], typed: bool) -> tuple[Make, str]:
    """The model of that name for the config's data set and norm, and what tells it from others; its
    card becomes the config's published numbers. Its weights lie below `model.weights`, else below
    RobustBench's own `models`, or are downloaded there.

    Raises Refused for a set or norm without models, ValueError for a model that can't be had.
    """
    name, group = word.removeprefix(PREFIX), plain["choices"]["dataset"]
    dataset, threat = DATASETS.get(group), THREATS.get(plain["dataset"]["norm"])
    if dataset is None or threat is None:
        key, value, known = ("dataset", group, DATASETS) if dataset is None else (
            "dataset.norm", plain["dataset"]["norm"], THREATS)  # fmt: skip
        raise Refused(f"{key}={value}: RobustBench has no such models; choose {', '.join(known)}")
    zoo = _imported(typed)
    known = zoo.all_models[zoo.BenchmarkDataset(dataset)]
    names = [*known.get(zoo.ThreatModel(threat), ())]
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise ValueError(f"no such {threat} model for {dataset}; there are {', '.join(near)}, ...")
    place = plain["model"]["weights"] or "models"
    plain["model"]["weights"] = None
    try:
        with tensors_alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = zoo.load_model(name, place, dataset, threat)
    except Exception as error:  # a download, a file, a constructor: each fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        path = Path(place) / dataset / threat / f"{name}.pt"
        raise ValueError(f"can't be loaded ({reason}); its weights go to {path}") from None
    try:
        card = card_of(name, dataset, threat)
    except (ImportError, LookupError, ValueError, TypeError, AttributeError, OSError) as error:
        log.warning("%s: its card can't be read (%s: %s)", word, type(error).__name__, error)
        card = None
    if card is not None:
        plain["published"] = card.published()
    return lambda image: network, f"{dataset}-{threat}-{name}-{content_of(network)}"


def _imported(typed: bool) -> ModuleType:
    if not typed and "robustbench" not in plugins.allowed():
        raise ValueError("is imported only where its name is typed on the command line")
    provide_autoattack()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old names of timm's, of pkg_resources
            return import_module("robustbench.utils")
    except ImportError as error:
        raise ValueError(f"needs {error.name or error}; {INSTALL}") from None


# cards ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What RobustBench tells of a model; accuracies in percent, `eps` in 1/255."""

    title: str
    architecture: str
    clean: float
    robust: float
    norm: str
    eps: float
    images: int
    source: str

    def published(self) -> dict[str, Any]:
        """The numbers as a recipe publishes them (see `sat.evaluation.reproduction`)."""
        measured = {"clean": self.clean, "autoattack": self.robust}
        numbers = [{"attack": attack, "percent": percent, "checkpoint": "last",
                    "images": self.images} for attack, percent in measured.items()]  # fmt: skip
        numbers[1] |= {"eps": self.eps, "norm": self.norm}
        source = f"{self.source}: {self.title}"
        return {"source": source, "network": self.architecture, "numbers": numbers}


def card_of(name: str, dataset: str, threat: str) -> Card | None:
    """The card of a model: its file below `model_info`, where RobustBench keeps them beside its
    code, else its row in the tables that the wheel brings; None where it has neither."""
    path = Path("model_info") / dataset / threat / f"{name}.json"
    norm, images = threat.lower(), IMAGES[dataset]
    if path.is_file():
        told = json.loads(path.read_text())
        robust = float(told.get("external") or told["autoattack_acc"])
        numbers = float(told["clean_acc"]), robust, norm, _eps(str(told["eps"])), images
        return Card(told["name"], told["architecture"], *numbers, str(path))
    source = f"RobustBench {version('robustbench')}"
    for place, eps, cells in _rows(str(metadata("robustbench").json["description"])):
        if place == (dataset, threat) and cells[0] == name:
            clean, robust = (float(cell.rstrip("%")) for cell in cells[2:4])
            return Card(cells[1], cells[4], clean, robust, norm, eps, images, source)
    return None


_MARKS = r"<[^>]*>|\*|\]\(.*\)|\["  # of Markdown around what is said


def _rows(text: str) -> Iterator[tuple[tuple[str, str], float, list[str]]]:
    """The rows of the tables in RobustBench's description: (data set, threat), eps in 1/255, and
    the cells model, paper, clean, robust, architecture, venue."""
    dataset, threat, eps = "", "", 0.0
    for line in text.splitlines():
        if found := re.match(r"### (\S+)", line):
            dataset = found[1].lower().replace("-", "")
        elif found := re.match(r"#### (\w+)(?:, eps=(\S+))?", line):
            threat, eps = found[1], _eps(found[2] or "0")
        elif line.startswith("| <sub>"):
            cells = [re.sub(_MARKS, "", cell).strip() for cell in line.split("|")[2:-1]]
            yield (dataset, threat), eps, cells


def _eps(text: str) -> float:
    """An eps in 1/255, of `8/255` or of `0.5`, whose unit is 1."""
    number, slash, _ = text.partition("/255")
    return float(number) * (1 if slash else 255)


# its benchmark ----------------------------------------------------------------------------------


def provide_autoattack() -> None:
    """Puts `pyautoattack` in place of `autoattack`, which RobustBench imports and calls with
    `log_path=` and `bs=`, and of which it wants the images alone; one that is installed stays.

        sat.evaluation.robustbench.provide_autoattack()
        from robustbench.eval import benchmark
        clean, robust = benchmark(sat.load("outputs/RUN"), dataset="cifar10",
                                  threat_model="Linf", eps=8 / 255)
    """
    if "autoattack" in sys.modules or find_spec("autoattack") is not None:
        return
    import pyautoattack.state

    class AutoAttack(pyautoattack.AutoAttack):
        def __init__(self, model: Any, *, log_path: str | None = None, **given: Any):
            super().__init__(model, **given)
            self.log_path = log_path

        def run_standard_evaluation(self, x: Any, y: Any, bs: int = 250, state_path: Any = None):
            if state_path is not None and Path(state_path).exists():
                raise ValueError(
                    f"aa_state_path={state_path}: pyautoattack does not go on from a state; remove"
                    " it, or let python -m sat.run evaluate=... measure, which does"
                )
            given = {"batch_size": bs, "state_path": state_path}
            with self._logging():
                return super().run_standard_evaluation(x, y, **given)[0]

        @contextmanager
        def _logging(self) -> Iterator[None]:
            """The package's logger, which all calls share, writes the file of this one."""
            if self.log_path is None:
                yield
                return
            before, handler = self.logger.level, logging.FileHandler(self.log_path)
            self.logger.addHandler(handler)
            self.logger.setLevel(logging.DEBUG)
            try:
                yield
            finally:
                self.logger.setLevel(before)
                self.logger.removeHandler(handler)
                handler.close()

    class EvaluationState(pyautoattack.state.EvaluationState):
        @classmethod
        def from_disk(cls, path: Path) -> Any:
            """A state with flags whose mean can be taken."""
            state = super().from_disk(path)
            state._robust_flags = state._robust_flags.float()
            return state

    package, state = ModuleType("autoattack"), ModuleType("autoattack.state")
    package.AutoAttack, state.EvaluationState = AutoAttack, EvaluationState  # type: ignore
    package.state = state  # type: ignore
    sys.modules.update({"autoattack": package, "autoattack.state": state})
