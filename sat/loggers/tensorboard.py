"""TensorBoard: scalars over images seen, the config, an image grid, hyper-parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sat.identity import FOLLOWED, NOT_IDENTITY

_TRAINING = ("attack", "schedule")
_COMPARED = ("dataset", "activation", "model", *_TRAINING)
# Groups that follow the dataset, or say nothing about what was trained.
_UNTOLD = ("schedule", "objective", "validation", "evaluation", "record")


# Charts of several tags, by category. A run has one colour, and the markers mean another tag from
# run to run: which is which must show from the order, so titles say what lies above what.
CHARTS = {
    "accuracy": {
        "held-out: clean above robust": ["val/clean", "val/robust"],
        "training: adversarial": ["train/adversarial_accuracy"],
    },
    "doubt": {
        "held-out: one step above many": ["diagnostics/single_step", "val/robust"],
        "the gap between them": ["diagnostics/gap"],
        "input gradients: cosine": ["diagnostics/cosine"],
        "input gradients: share of zeros": ["diagnostics/zero_gradients"],
    },
    "optimisation": {"loss": ["train/loss"], "learning rate": ["train/learning_rate"]},
}


class _Silent:
    """A writer that writes nothing."""

    def __getattr__(self, name: str) -> "_Silent":
        return self

    def __call__(self, *arguments: Any, **named: Any) -> "_Silent":
        return self


class Dashboard:
    """The event file of a run directory. Scalars' x axis counts the images seen."""

    def __init__(self, directory: Path | None):
        """None: for a process that writes nothing."""
        if directory is None:
            self.writer = _Silent()
            return
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory))

    def introduce(self, config: Mapping[str, Any], text: str, facts: str) -> None:
        """At the start: the resolved config, what the model is, and charts that belong together."""
        self._session(config, ended=False)
        self.writer.add_text("config", "    " + text.replace("\n", "\n    "), 0)
        self.writer.add_text("run", facts.replace("\n", "  \n"), 0)
        layout = {
            category: {title: ["Multiline", tags] for title, tags in charts.items()}
            for category, charts in CHARTS.items()
        }
        self.writer.add_custom_scalars(layout)

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        """One point of each curve at `images` images seen."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, images)

    def alarm(self, text: str, images: int) -> None:
        """A reason to doubt the numbers, found at `images` images seen."""
        self.writer.add_text("alarms", text, images)

    def pictures(self, x: Tensor, x_adv: Tensor, images: int) -> None:
        """Three rows: clean, adversarial, and the perturbation stretched to the full range."""
        delta = (x_adv - x) / (x_adv - x).abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        rows = torch.stack([x, x_adv, 0.5 + 0.5 * delta]).cpu()
        factor = max(1, 96 // x.shape[-1])  # small images are unreadable at their own size
        rows = rows.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        rows = torch.nn.functional.pad(rows, (2, 2, 2, 2), value=1.0)
        grid = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
        self.writer.add_image("views/clean, adversarial, perturbation", grid, images)

    def figure(self, tag: str, figure: Any, images: int) -> None:
        """A drawn matplotlib figure, as an image; `views` sorts behind every curve."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        self.writer.add_image(f"views/{tag}", pixels, images, dataformats="HWC")

    def conclude(self, config: Mapping[str, Any], metrics: Mapping[str, float], images: int):
        """A row of the HPARAMS table: what runs are compared by, and the final numbers.

        No `Experiment` is written: that of one run would set the columns of all. Without it
        TensorBoard shows what differs between runs first, and as metrics the first five of all
        scalars: hence a name that sorts before `diagnostics`.
        """
        self._session(config, ended=True)
        for key, value in metrics.items():
            self.writer.add_scalar(f"at_end/{key}", value, images)

    def _session(self, config: Mapping[str, Any], ended: bool) -> None:
        from torch.utils.tensorboard.summary import hparams

        _, start, end = hparams(compared(config), {})
        for summary in [start, end] if ended else [start]:
            self.writer.file_writer.add_summary(summary)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def compared(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What tells runs apart: the options chosen, the seed, and every value that moves a number."""
    if config["evaluate"] is None:
        table, silent = {"seed": config["seed"]}, _UNTOLD
    else:  # nothing is known of how these weights were trained
        table, silent = {"weights": Path(config["evaluate"]).stem}, (*_UNTOLD, *_TRAINING)
    table |= {group: option for group, option in config["choices"].items() if group not in silent}
    for section in _COMPARED:
        if section in _TRAINING and "weights" in table:
            continue
        for key, value in config[section].items():
            followed = section == "dataset" and key in FOLLOWED
            if key != "_target_" and not followed and f"{section}.{key}" not in NOT_IDENTITY:
                table[f"{section}.{key}"] = value
    return {key: _plain(value) for key, value in table.items() if value is not None}


def _plain(value: Any) -> int | float | str:
    """Numbers stay numbers; true and false would become 1 and 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else str(value)
