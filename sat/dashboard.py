"""TensorBoard: scalars over images seen, the config, an image grid, hyper-parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (bool, int, float, str)
_COMPARED = {
    "activation": ("alpha",),
    "attack": ("eps", "steps", "norm"),
    "model": ("name", "variant", "depth", "width"),
    "dataset": ("limit", "image_size"),
    "schedule": ("epochs", "batch_size", "learning_rate", "weight_decay", "ema"),
}


class Dashboard:
    """The event file of a run directory. Scalars' x axis counts the images seen."""

    def __init__(self, directory: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory))

    def introduce(self, config: str, facts: str) -> None:
        """At the start: the resolved config, what the model is, and charts that belong together."""
        self.writer.add_text("config", "    " + config.replace("\n", "\n    "), 0)
        self.writer.add_text("run", facts.replace("\n", "  \n"), 0)
        chart = lambda *tags: ["Multiline", list(tags)]  # noqa: E731
        self.writer.add_custom_scalars(
            {
                "accuracy": {
                    "held-out: clean and robust": chart("val/clean", "val/robust"),
                    "test: clean and robust": chart("test/clean", "test/robust/.*"),
                    "training: adversarial": chart("train/adversarial_accuracy"),
                },
                "doubt": {
                    "held-out: after one step and after many": chart(
                        "diagnostics/single_step", "val/robust"
                    ),
                    "the gap between them": chart("diagnostics/gap"),
                    "input gradients: cosine, share of zeros": chart(
                        "diagnostics/cosine", "diagnostics/zero_gradients"
                    ),
                },
                "optimisation": {
                    "loss": chart("train/loss"),
                    "learning rate": chart("train/learning_rate"),
                },
            }
        )

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
        self.writer.add_image("clean, adversarial, perturbation", grid, images)

    def figure(self, tag: str, figure: Any, images: int) -> None:
        """A drawn matplotlib figure, as an image."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        self.writer.add_image(tag, pixels, images, dataformats="HWC")

    def hyperparameters(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of the HPARAMS table: what runs are compared by, and the final numbers."""
        from torch.utils.tensorboard.summary import hparams

        table = {key: config["choices"].get(key, "") for key in ("dataset", "model", "activation")}
        table |= {"attack": config["choices"].get("attack", ""), "seed": config["seed"]}
        for section, keys in _COMPARED.items():
            for key in keys:
                if (value := config[section].get(key)) is not None:
                    table[f"{section}.{key}"] = value if isinstance(value, _PLAIN) else str(value)
        for summary in hparams(table, {f"final/{key}": v for key, v in metrics.items()}):
            self.writer.file_writer.add_summary(summary)
        for key, value in metrics.items():
            self.writer.add_scalar(f"final/{key}", value, 0)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
