"""TensorBoard: scalars over images seen, the config, pictures, hyper-parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sat.loggers.base import About, Logger

# TensorBoard sorts groups of cards by name and opens the first two, train and val by these names.
GROUPS = {"diagnostics": "val_diagnostics", "test": "verdict"}


class TensorBoard(Logger):
    """Event files in the run directory."""

    files: ClassVar[tuple[str, ...]] = ("events.out.tfevents.*",)

    def open(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.about, self.writer = about, SummaryWriter(str(about.directory))

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(shown(tag), value, images)

    def text(self, tag: str, text: str, images: int) -> None:
        self.writer.add_text(tag, text, images)

    def image(self, tag: str, pixels: Any, images: int) -> None:
        self.writer.add_image(tag, pixels, images)

    def config(
        self, values: Mapping[str, Any], metrics: Mapping[str, float] | None, images: int
    ) -> None:
        """A row of the HPARAMS table: what runs are compared by, and the final numbers. A row is
        called by its hash first: TensorBoard cuts off the end of a name."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        from sat.loggers import columns

        final = {shown(tag): value for tag, value in (metrics or {}).items()}
        columns.tell(self.about.directory.parent, values, final)
        trial = f"{self.about.hash} {self.about.name.removesuffix('-' + self.about.hash)}"
        start = plugin_data_pb2.SessionStartInfo(group_name=trial)
        for key, value in values.items():
            kind = "string_value" if isinstance(value, str) else "number_value"
            setattr(start.hparams[key], kind, value)
        add = self.writer.file_writer.add_summary
        add(columns.summary(metadata.SESSION_START_INFO_TAG, session_start_info=start))
        if metrics is not None:
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
            add(columns.summary(metadata.SESSION_END_INFO_TAG, session_end_info=end))
        for tag, value in final.items():
            self.writer.add_scalar(tag, value, images)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, code: int = 0) -> None:
        self.writer.close()


def shown(tag: str) -> str:
    """A tag as TensorBoard has it."""
    group, _, rest = tag.partition("/")
    return f"{GROUPS.get(group, group)}/{rest}"
