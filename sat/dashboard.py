"""TensorBoard: scalars over images seen, the config, an image grid, hyper-parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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

    def pictures(self, x: Tensor, x_adv: Tensor, images: int) -> None:
        """A row an image: clean, adversarial, and the perturbation stretched to the full range."""
        delta = (x_adv - x) / (x_adv - x).abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        rows = torch.stack([x, x_adv, 0.5 + 0.5 * delta], dim=1).cpu()
        if x.shape[-1] < 64:  # small images are unreadable at their own size
            factor = 64 // x.shape[-1]
            rows = rows.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        grid = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
        self.writer.add_image("clean, adversarial, perturbation", grid, images)

    def hyperparameters(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of the HPARAMS table: the keys that runs differ in, and the final numbers."""
        from torch.utils.tensorboard.summary import hparams

        flat = {
            f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
            for section in ("activation", "attack", "dataset", "model", "schedule")
            for key, value in config[section].items()
            if key != "_target_"
        }
        flat |= {key: config["choices"].get(key, "") for key in ("activation", "attack", "model")}
        flat |= {"dataset": config["choices"].get("dataset", ""), "seed": config["seed"]}
        for summary in hparams(flat, {f"final/{k}": v for k, v in metrics.items()}):
            self.writer.file_writer.add_summary(summary)
        for key, value in metrics.items():
            self.writer.add_scalar(f"final/{key}", value, 0)

    def text(self, tag: str, text: str, images: int) -> None:
        self.writer.add_text(tag, text, images)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
