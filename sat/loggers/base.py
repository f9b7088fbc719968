"""What a tracker is, and all those of one run.

A new tracker is one class, a `Logger`, and one YAML file in `conf/logger` with a key of its name.
`metrics.jsonl` is written whatever trackers there are.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from sat.errors import Refused, is_signal
from sat.rundir.files import read_text, regular

log = logging.getLogger("sat")


@dataclass(frozen=True)
class About:
    """The run that a tracker is told of."""

    directory: Path
    name: str
    hash: str
    experiment: str | None = None


class Logger:
    """A tracker of one run; what it can't show it leaves as it is here, and shows nothing.

    It is opened once a run, in the first process alone. The x axis is the number of images seen.
    What it writes into the run directory as `files` (patterns) is cut back to the last checkpoint
    when a killed run resumes, and told again. One whose history is `remote` keeps it: it is not
    told twice what it was told before. Any exception ends the tracker, and not the run.
    """

    files: ClassVar[tuple[str, ...]] = ()
    remote: ClassVar[bool] = False

    def open(self, about: About) -> None:
        """Begins, or goes on with what it knows of the run of this hash."""

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """One point of each curve, by tag."""

    def text(self, tag: str, text: str, images: int) -> None:
        """A note in Markdown."""

    def image(self, tag: str, pixels: Any, images: int) -> None:
        """A picture, a tensor [C, H, W] on the CPU, in [0, 1] or uint8."""

    def config(
        self, values: Mapping[str, Any], metrics: Mapping[str, float] | None, images: int
    ) -> None:
        """What runs are compared by: numbers and words by key; at the end with final numbers."""

    def flush(self) -> None:
        """Writes all before a checkpoint notes how long `files` are."""

    def close(self, code: int = 0) -> None:
        """The run has ended, with this exit code; 130 and 143 are of a signal."""


def needs_package(name: str) -> None:
    """Raises Refused where the package of the tracker `name`, an extra of this program, is not
    installed."""
    if find_spec(name) is None:
        raise Refused(f"logger={name}: needs the package {name}: pip install {name}")


class Loggers:
    """All trackers of a run by name; none in a process that is not the first."""

    def __init__(self, members: Mapping[str, Logger], about: About, first: bool = True):
        self.members, self.about = dict(members) if first else {}, about
        self.files = [pattern for member in members.values() for pattern in member.files]
        self._opened = False
        self._sent: dict[str, _Sent] = {}

    # what a run tells ---------------------------------------------------------------------------

    def introduce(self, config: Mapping[str, Any], text: str, facts: str) -> None:
        """Tells at the start the resolved config as text, and what the model and the data are."""
        self._tell("config", compared(config), None, 0)
        self.text("config", "    " + text.replace("\n", "\n    "), 0)
        self.text("run", facts.replace("\n", "  \n"), 0)

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        for name, new in self._new(values, images):
            if new:
                self._call(name, "scalars", {tag: values[tag] for tag in new}, images)

    def text(self, tag: str, text: str, images: int) -> None:
        for name, new in self._new([f"{tag}: {text}"], images):
            if new:
                self._call(name, "text", tag, text, images)

    def alarm(self, text: str, images: int) -> None:
        """A reason to doubt the numbers."""
        self.text("alarms", text, images)

    def image(self, tag: str, pixels: Any, images: int) -> None:
        for name, new in self._new([tag], images):
            if new:
                self._call(name, "image", tag, pixels, images)

    def pictures(self, of: str, views: Any, images: int) -> None:
        """A `sat.evaluation.views.Views` of those images: `held-out`, `test`."""
        from sat.loggers.pictures import sheet

        if self.members and views is not None:
            self.image(f"views/{of}", sheet(views), images)

    def figure(self, tag: str, figure: Any, images: int) -> None:
        """A drawn matplotlib figure; `views` sorts behind curves."""
        from sat.loggers.pictures import pixels_of

        if self.members:
            self.image(f"views/{tag}", pixels_of(figure), images)

    def conclude(
        self, config: Mapping[str, Any], metrics: Mapping[str, float], images: int
    ) -> None:
        """Tells at the end what runs are compared by, with the final numbers."""
        self._tell("config", compared(config), metrics, images)

    def flush(self) -> None:
        if self._opened:
            self._tell("flush")

    def close(self, code: int = 0) -> None:
        if self._opened:
            self._tell("close", code)
            self._opened = False

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        """Closes, with the exit code that this exception makes of the run."""
        stopped = 130 if isinstance(error, KeyboardInterrupt) else 1
        self.close(0 if error is None else getattr(error, "code", None) or stopped)

    # --------------------------------------------------------------------------------------------

    def _tell(self, method: str, *arguments: Any) -> None:
        for name in [*self.members]:
            self._call(name, method, *arguments)

    def _call(self, name: str, method: str, *arguments: Any) -> None:
        """Tells one of them."""
        if not self._opened:
            self._opened = True
            self._tell("open", self.about)
        if (member := self.members.get(name)) is not None:
            with self._dropping(name):
                getattr(member, method)(*arguments)

    @contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        """What fails in here ends this member, and nothing else."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if is_signal(error):
                raise
            if (member := self.members.pop(name, None)) is None:  # it closes
                return
            reason = str(error).strip().splitlines() or [""]
            text = f"{type(error).__name__}: {reason[0]}"[:300]
            log.warning("logger=%s: fails (%s); the run goes on without it", name, text)
            with self._dropping(name):
                member.close()

    def _new(self, tags: Any, images: int) -> Iterator[tuple[str, list[str]]]:
        """Tags by member, of which it has no point at `images`."""
        for name, member in [*self.members.items()]:
            new = list(tags)
            if member.remote and name in self.members:
                with self._dropping(name):
                    if name not in self._sent:
                        self._sent[name] = _Sent(self.about.directory / f"{name}.sent.jsonl")
                    new = self._sent[name].new(tags, images)
            yield name, new


class _Sent:
    """Points that a remote tracker was told, on disk before they are sent: one that is killed
    meanwhile lacks a point rather than having it twice."""

    def __init__(self, path: Path):
        self.path, self.points = path, set()
        text = read_text(path, errors="replace") if path.exists() else ""
        self.begin = "\n" if text and not text.endswith("\n") else ""  # of what is written next
        for line in text.splitlines():
            with suppress(ValueError, TypeError):  # the last one may be torn
                images, tags = json.loads(line)
                self.points |= {(images, tag) for tag in tags}

    def new(self, tags: Any, images: int) -> list[str]:
        new = [tag for tag in tags if (images, tag) not in self.points]
        if new:
            self.points |= {(images, tag) for tag in new}
            with open(self.path, "a", opener=regular) as file:
                file.write(self.begin + json.dumps([images, new]) + "\n")
            self.begin = ""
        return new


# what runs are compared by ----------------------------------------------------------------------

_TRAINING = ("augment", "attack", "objective", "regulariser", "weight_attack", "schedule")
_COMPARED = ("dataset", "activation", "model", *_TRAINING)
# Groups that follow the dataset, or say nothing about what was trained.
_UNTOLD = ("schedule", "sampler", "validation", "evaluation", "metrics", "record")


def compared(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What tells runs apart: the options chosen, the seed, and every value of a `Spec.compared`,
    which holds those that move a number."""
    table: dict[str, Any] = {"seed": config["seed"]}
    silent: tuple[str, ...] = _UNTOLD
    if config["evaluate"] is not None:  # nothing is known of how these weights were trained
        table, silent = {"weights": Path(config["evaluate"]).stem}, (*_UNTOLD, *_TRAINING)
    table |= {group: option for group, option in config["choices"].items() if group not in silent}
    for section in _COMPARED:
        if section in _TRAINING and "weights" in table:
            continue
        for key, value in config.get(section, {}).items():
            if key != "_target_":
                table[f"{section}.{key}"] = value
    return {key: _plain(value) for key, value in table.items() if value is not None}


def _plain(value: Any) -> int | float | str:
    """Numbers stay numbers; true and false would become 1 and 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else str(value)
