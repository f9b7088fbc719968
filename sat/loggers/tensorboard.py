"""TensorBoard: scalars over images seen, the config, pictures, hyper-parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sat.loggers.base import About, Logger

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


class TensorBoard(Logger):
    """Event files in the run directory."""

    files: ClassVar[tuple[str, ...]] = ("events.out.tfevents.*",)

    def open(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(about.directory))

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, images)

    def text(self, tag: str, text: str, images: int) -> None:
        self.writer.add_text(tag, text, images)

    def image(self, tag: str, pixels: Any, images: int) -> None:
        self.writer.add_image(tag, pixels, images)

    def config(
        self, values: Mapping[str, Any], metrics: Mapping[str, float] | None, images: int
    ) -> None:
        """A row of the HPARAMS table: what runs are compared by, and the final numbers; at the
        start also charts that belong together.

        No `Experiment` is written: that of one run would set the columns of all. Without it
        TensorBoard shows what differs between runs first, and as metrics the first five of all
        scalars: hence a name that sorts before `diagnostics`.
        """
        from torch.utils.tensorboard.summary import hparams

        _, start, end = hparams(dict(values), {})
        for summary in [start] if metrics is None else [start, end]:
            self.writer.file_writer.add_summary(summary)
        for key, value in (metrics or {}).items():
            self.writer.add_scalar(f"at_end/{key}", value, images)
        if metrics is None:
            layout = {
                category: {title: ["Multiline", tags] for title, tags in charts.items()}
                for category, charts in CHARTS.items()
            }
            self.writer.add_custom_scalars(layout)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, code: int = 0) -> None:
        self.writer.close()
