"""Weights & Biases and MLflow, the real packages, offline: `make test-trackers`."""

import json
import struct

import pytest

from sat.training.callbacks import Callbacks

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own modules warn while imported
ONCE = ["train/loss", "val/clean"]


def sent_offline(path):
    """The records of an offline run's file: blocks of 32 KiB behind a header of 7 bytes, of pieces
    with a head of 7 bytes (checksum, length, whether it is whole, first, middle or last)."""
    from wandb.proto import wandb_internal_pb2

    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a head: zeros
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def points(records):
    """What curves were told: (tag, images)."""
    for record in records:
        if record.HasField("history"):
            row = {".".join(item.nested_key): item.value_json for item in record.history.item}
            yield from ((tag, int(row["images"])) for tag in row if tag in ONCE)


@pytest.fixture
def killed_once(sat, monkeypatch):
    """`killed_once(words)`: a run that is killed after a checkpoint and a validation beyond it, and
    that the same command ends."""

    def call(*words):
        validate, alive = Callbacks.validate, [True, False]

        def killed(callbacks, state):
            validate(callbacks, state)
            if alive.pop(0):
                return callbacks.save(state)
            if not alive:
                raise SystemExit(137)

        with monkeypatch.context() as patch:
            patch.setattr(Callbacks, "validate", killed)
            assert sat(*words).code == 137
        done = sat(*words)
        assert done.code == 0 and "fails" not in done.err, done.err
        return done

    return call


def expected(run):
    """All points that metrics.jsonl has of these curves."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sorted((tag, row["images"]) for row in lines for tag in ONCE if tag in row)


def test_wandb_continues_a_run_by_its_hash_and_is_told_each_step_once(killed_once):
    pytest.importorskip("wandb", reason="needs wandb: make test-trackers")
    words = ["logger.wandb.mode=offline", "logger.wandb.tags=[a,b]", "experiment=elu_vs_celu"]
    done = killed_once("logger=[tensorboard,wandb]", *words, "activation=elu")
    parts = [[*sent_offline(path)] for path in sorted(done.run.glob("wandb/offline*/*.wandb"))]
    assert len(parts) == 2  # a folder for each start
    for records in parts:
        (begun,) = [record.run for record in records if record.HasField("run")][:1]
        assert begun.run_id == done.result["hash"] and begun.display_name == done.run.name
        assert (begun.project, begun.run_group) == ("sat", "elu_vs_celu")
        assert list(begun.tags) == ["a", "b"]
    told = [[*points(records)] for records in parts]
    assert told[0] and told[1] and not set(told[0]) & set(told[1])
    assert sorted(sum(told, [])) == expected(done.run)
    codes = [record.exit.exit_code for part in parts for record in part if record.HasField("exit")]
    assert codes == [137, 0]
    configured = [
        item for record in parts[1] if record.HasField("config") for item in record.config.update
    ]
    assert ("activation", '"elu"') in [(item.key, item.value_json) for item in configured]
    final = {item.key or item.nested_key[0]: item.value_json for record in parts[1]
             if record.HasField("summary") for item in record.summary.update}  # fmt: skip
    assert (
        json.loads(final["test/best/pgd20"]) == done.result["best"]["robust"]["pgd20"]["accuracy"]
    )


def test_mlflow_keeps_its_id_in_the_run_directory(killed_once, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: make test-trackers")
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts below the working directory
    place = f"sqlite:///{tmp_path}/runs.db"
    words = [
        "logger=[mlflow]",
        f"logger.mlflow.tracking_uri={place}",
        "logger.mlflow.tags=[vision]",
    ]
    done = killed_once(*words)
    client = mlflow.MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("sat").experiment_id])
    assert (done.run / "mlflow.id").read_text().strip() == run.info.run_id
    assert (run.info.run_name, run.info.status) == (done.run.name, "FINISHED")
    assert run.data.tags["sat.hash"] == done.result["hash"] and run.data.tags["vision"] == "true"
    told = [
        (tag, point.step)
        for tag in ONCE
        for point in client.get_metric_history(run.info.run_id, tag)
    ]
    assert sorted(told) == expected(done.run)
    assert run.data.params["activation"] == "silu"
    best = done.result["best"]["robust"]["pgd20"]["accuracy"]
    assert run.data.metrics["test/best/pgd20"] == pytest.approx(best)
    names = {entry.path for entry in client.list_artifacts(run.info.run_id, "notes")}
    assert {"notes/config.md", "notes/run.md"} <= names
    assert len(client.list_artifacts(run.info.run_id, "images")) > 0


def test_each_job_of_a_sweep_is_a_run_of_its_own(sat):
    pytest.importorskip("wandb", reason="needs wandb: make test-trackers")
    done = sat("-m", "seed=0,1", "logger=[wandb]", "logger.wandb.mode=offline")
    assert done.code == 0 and "fails" not in done.err, done.err
    for run in done.runs:
        (path,) = run.glob("wandb/offline*/*.wandb")
        records = [*sent_offline(path)]
        assert {r.run.run_id for r in records if r.HasField("run")} == {run.name[-8:]}
        assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]
        assert sorted(points(records)) == expected(run)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_whose_package_is_missing_is_refused_before_anything_runs(name, sat, monkeypatch):
    monkeypatch.setattr("sat.loggers.base.find_spec", lambda _: None)
    done = sat(f"logger=[{name}]")
    remedy = f"! logger={name}: needs the package {name}: pip install {name}"
    assert done.code == 2 and remedy in done.err and not done.runs
