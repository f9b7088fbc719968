"""The columns of TensorBoard's HPARAMS tab, which the runs of one folder share.

Left to itself TensorBoard shows the first five keys that differ, by name, and as metrics the first
five of all scalars. One experiment summary, beside the runs, says both; so the final numbers need
not sort before the curves. TensorBoard reads it as it starts.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat.rundir.checkpoint import write_whole
from sat.rundir.files import read_text

FOLDER = ".hparams"
SHOWN = 5  # keys and metrics that TensorBoard shows by itself
# What comes first of the keys that differ, and these two whether they differ or not.
ALWAYS = ("activation", "seed")
FIRST = (*ALWAYS, "dataset", "objective", "activation.alpha", "attack.steps", "model.depth",
         "model.width", "model", "attack", "weight_attack", "regulariser")  # fmt: skip


def tell(root: Path, values: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Adds the keys and the final numbers, by tag, of a run to those of the others in `root`. Of
    two processes that tell at once the last one counts: a run tells at its start and at its end."""
    path = root / FOLDER / "columns.json"
    try:
        known = json.loads(read_text(path))
        keys, tags = dict(known["keys"]), [*known["metrics"]]
    except (OSError, ValueError, LookupError, TypeError):
        known, keys, tags = None, {}, []
    lacking = keys.keys() ^ values.keys() if known else {*()}  # a run without a key differs, too
    for key, value in values.items():
        kind = "DATA_TYPE_STRING" if isinstance(value, str) else "DATA_TYPE_FLOAT64"
        before = keys.get(key, {"value": value, "type": kind, "differs": False})
        if before["type"] != kind:
            kind = "DATA_TYPE_STRING"
        differs = before["differs"] or before["value"] != value
        keys[key] = {"value": before["value"], "type": kind, "differs": differs}
    for key in lacking:
        keys[key] = keys[key] | {"differs": True}
    tags = in_order({*tags, *metrics})
    if (told := {"keys": keys, "metrics": tags}) != known:
        path.parent.mkdir(exist_ok=True)
        events, text = events_of(keys, tags), json.dumps(told, indent=1).encode()
        summary = path.with_name("events.out.tfevents.0")
        write_whole(path, lambda file: file.write(text), shared=True)
        write_whole(summary, lambda file: file.write(events), shared=True)


def in_order(tags: set[str]) -> list[str]:
    """Final numbers: clean accuracy, then under attack, of `best`, the alarms, those of `last`."""

    def rank(tag: str) -> tuple[Any, ...]:
        which = tag.split("/")[1]
        return "best alarms last".find(which) % 99, not tag.endswith("/clean"), tag

    return sorted(tags, key=rank)


def shown_first(keys: Mapping[str, Any]) -> list[str]:
    """The keys that TensorBoard shows by itself: those that differ, and others to fill up."""
    differ = sorted(key for key, told in keys.items() if told["differs"] or key in ALWAYS)
    ranked = sorted(differ, key=[*FIRST, *differ].index)
    return [*ranked, *(key for key in FIRST if key in keys and key not in ranked)][:SHOWN]


def events_of(keys: Mapping[str, Any], metrics: list[str]) -> bytes:
    """An event file with the experiment summary; `differs` is what TensorBoard sorts by."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.summary.writer.record_writer import RecordWriter

    first = shown_first(keys)
    experiment = api_pb2.Experiment()
    for key, told in keys.items():
        experiment.hparam_infos.add(name=key, type=told["type"], differs=key in first)
    for tag in metrics:
        label = " ".join(tag.split("/")[1:])
        experiment.metric_infos.add(name={"tag": tag}, display_name=label)
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    told = summary(metadata.EXPERIMENT_TAG, experiment=experiment)
    writer.write(Event(summary=told).SerializeToString())
    return file.getvalue()


def summary(tag: str, **content: Any) -> Any:
    """One summary of the HPARAMS tab."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    told = plugin_data_pb2.HParamsPluginData(**content)
    found = Summary()
    found.value.add(
        tag=tag, metadata=metadata.create_summary_metadata(told), tensor=metadata.NULL_TENSOR
    )
    return found
