"""Weights & Biases: curves over images seen, pictures, notes, what runs are compared by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sat.arguments import check_choices
from sat.loggers.base import About, Logger, needs_package


@dataclass
class WandB(Logger):
    """A run of `project`, whose id is the run's hash, grouped by experiment or as `group` says.

    `mode: offline` writes below the run directory, which `wandb sync` sends later: there each
    start makes a folder of the same id. null follows the variable WANDB_MODE, or is online.
    """

    project: str = "sat"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None

    remote: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choices(self)
        needs_package("wandb")

    def open(self, about: About) -> None:
        """Goes on with the run of this id where this directory has begun it; a run begun anew
        (record.fresh=true) takes the place of the old one."""
        import wandb

        known = (about.directory / "wandb").is_dir()
        self.run = wandb.init(
            project=self.project, entity=self.entity, group=self.group or about.experiment,
            tags=list(self.tags), mode=self.mode, dir=str(about.directory), name=about.name,
            id=about.hash, resume="allow" if known else None, reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="images")

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        self.run.log({**values, "images": images})

    def text(self, tag: str, text: str, images: int) -> None:
        from html import escape

        import wandb

        if tag == "alarms":
            self.run.alert(title="alarm", text=text)
        html = wandb.Html(f"<pre>{escape(text)}</pre>", inject=False)
        self.run.log({tag: html, "images": images})

    def image(self, tag: str, pixels: Any, images: int) -> None:
        import wandb

        self.run.log({tag: wandb.Image(pixels), "images": images})

    def config(
        self, values: Mapping[str, Any], metrics: Mapping[str, float] | None, images: int
    ) -> None:
        self.run.config.update(dict(values), allow_val_change=True)
        self.run.summary.update(dict(metrics or {}))

    def close(self, code: int = 0) -> None:
        self.run.finish(exit_code=code)
