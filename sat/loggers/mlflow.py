"""MLflow: curves over images seen, pictures and notes as artifacts, what runs are compared by."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sat.loggers.base import About, Logger, needs_package
from sat.rundir.files import read_text


@dataclass
class MLflow(Logger):
    """A run in the MLflow experiment `project`, tagged with the group and each of `tags`.

    MLflow gives the run an id, which is kept in the run directory as mlflow.id; a resumed run goes
    on under it. `tracking_uri` null follows MLFLOW_TRACKING_URI, or is what MLflow takes itself.
    """

    project: str = "sat"
    tracking_uri: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    remote: ClassVar[bool] = True

    def __post_init__(self) -> None:
        needs_package("mlflow")

    def open(self, about: About) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.tracking_uri)
        kept = about.directory / "mlflow.id"
        if kept.exists():
            self.id = read_text(kept).strip()
            self.client.update_run(self.id, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.project)
        place = found.experiment_id if found else self.client.create_experiment(self.project)
        group = self.group or about.experiment
        tags = {"sat.hash": about.hash, **({"sat.group": group} if group else {})}
        tags |= dict.fromkeys(self.tags, "true")
        self.id = self.client.create_run(place, tags=tags, run_name=about.name).info.run_id
        kept.write_text(self.id + "\n")

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        points = [Metric(_key(tag), value, now, images) for tag, value in values.items()]
        self.client.log_batch(self.id, metrics=points)

    def text(self, tag: str, text: str, images: int) -> None:
        """A file of its own for each alarm: two may come at one step."""
        number = f"-{images}-{time.time_ns()}" if tag == "alarms" else ""
        self.client.log_text(self.id, text, f"notes/{_key(tag)}{number}.md")

    def image(self, tag: str, pixels: Any, images: int) -> None:
        values = pixels.permute(1, 2, 0)
        if values.is_floating_point():
            values = (255 * values).round().byte()
        self.client.log_image(self.id, values.numpy(), key=_key(tag), step=images)

    def config(
        self, values: Mapping[str, Any], metrics: Mapping[str, float] | None, images: int
    ) -> None:
        from mlflow.entities import Param

        params = [Param(_key(name), str(value)) for name, value in values.items()]
        self.client.log_batch(self.id, params=params)
        self.scalars(metrics or {}, images)

    def close(self, code: int = 0) -> None:
        status = {0: "FINISHED", 130: "KILLED", 143: "KILLED"}.get(code, "FAILED")
        self.client.set_terminated(self.id, status)


def _key(tag: str) -> str:
    """A tag in the letters that MLflow allows in a name."""
    return re.sub(r"[^\w./ -]", "", tag)
