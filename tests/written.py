"""Runs and experiments that are written by hand: for the tests of reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from sat.evaluation.measure import accuracy
from sat.report import spec

PGD = {"attack": "PGD", "eps": 8.0, "norm": "linf", "steps": 20, "limit": None, "subset_seed": None}
SETTINGS = {
    "strong": {
        "attack": "FastAutoAttack",
        "eps": 8.0,
        "norm": "linf",
        "limit": None,
        "subset_seed": None,
    },
    "apgd": {**PGD, "attack": "APGD", "steps": 30},
    "other": {**PGD, "eps": 4.0},  # pgd20 of another size
    "weak": {**PGD, "eps": 2.0, "steps": 50},
}

SPEC = {
    "title": "Activations",
    "question": "Is smooth better?",
    "rows": ["activation", "activation.alpha"],
    "reference": {"activation": "relu"},
    "published": {
        "setting": "ImageNet", "source": "figure 2",
        "rows": [{"activation": "relu", "clean": 68.8, "robust": 33.0}],
    },
}  # fmt: skip
CLAIM = {"text": "SiLU wins.", "better": {"activation": "silu"}, "than": {"activation": "relu"},
         "measure": "robust"}  # fmt: skip


def config(activation: str, seed: int, alpha: float | None = None, **changes) -> dict:
    """A run's config; `changes` go by section: `schedule={"epochs": 8.0}`."""
    written = {
        "choices": {"activation": activation, "attack": "pgd", "model": "resnet",
                    "dataset": "digits", "experiment": None},
        "seed": seed, "evaluate": None,
        "dataset": {"_target_": "sat.data.memory.Digits", "limit": None},
        "activation": {"_target_": f"sat.activations.{activation}"},
        "attack": {"_target_": "sat.attacks.pgd.PGD", "eps": 8.0, "steps": 1},
        "model": {"_target_": "sat.models.ResNet", "depth": 10},
        "schedule": {"epochs": 4.0, "decay": "cosine"},
        "objective": {}, "validation": {}, "evaluation": {}, "record": {"root": str(seed)},
    }  # fmt: skip
    if alpha is not None:
        written["activation"]["alpha"] = alpha
    for section, values in changes.items():
        written[section] = {**written[section], **values} if isinstance(values, dict) else values
    return written


def identity(written: dict) -> dict:
    """What a run's result tells of its config, as if there were no default."""
    sections = ("activation", "attack", "model", "schedule", "objective", "validation")
    dataset = {key: value for key, value in written["dataset"].items() if key != "root"}
    told = {"seed": written["seed"], "dataset": dataset}
    return told | {name: written[name] for name in sections}


class Folder:
    """A folder of finished runs of 100 test images, 90 of them right when clean."""

    def __init__(self, outputs: Path):
        self.outputs = outputs
        outputs.mkdir()

    def add(self, activation, seed, right, *, alpha=None, experiments=("x",), facts=(),
            overrides=(), **changes) -> Path:  # fmt: skip
        """`right` images stand pgd20, or with a dict each of its attacks."""
        number = len(list(self.outputs.glob("*")))
        run = self.outputs / f"{activation}{alpha or ''}-s{seed}-{number}"
        run.mkdir()
        written = config(activation, seed, alpha, **changes)
        (run / "config.yaml").write_text(yaml.safe_dump(written))
        (run / "experiments.txt").write_text("\n".join(experiments))
        attacks = right if isinstance(right, dict) else {"pgd20": right}
        result = {"status": "finished", "seed": seed, "parameters": 5, "wall_seconds": 60.0,
                  "name": run.name, "hash": "12345678", "test_images": 100, "attack": None,
                  "choices": {"threads": 1}, "steps": 9, "images": 99,
                  "images_per_second": 9.0}  # fmt: skip
        result["identity"] = identity(written)
        result["dataset"] = {"name": "digits", "classes": 10, "test": 100, "test_content": "aa"}
        result["dataset"] |= dict(facts)
        result["overrides"] = list(overrides)
        result["environment"] = {"device": "a machine", "torch": "2.0", "commit": "abcdef0123"}
        for which in ("best", "last"):
            clean = {**accuracy(np.arange(100) < 90), "subset": [None, None]}
            result[which] = {"step": 9, "epoch": 4.0, "clean": clean, "robust": {}}
            for name, count in attacks.items():
                settings = SETTINGS.get(name, PGD)
                name = {"other": "pgd20", "weak": "pgd50"}.get(name, name)
                robust = np.arange(100) < count
                result[which]["robust"][name] = {**accuracy(robust), "settings": settings}
        (run / "result.json").write_text(json.dumps(result))
        return run

    def pair(self, one: str, two: str, points: list[int], base: int = 50, **more) -> None:
        """A run of each for each seed, `two` above `one` by so many points."""
        for seed, above in enumerate(points):
            self.add(one, seed, base + 2 * seed, **more)
            self.add(two, seed, base + 2 * seed + above, **more)


def change(path: Path, **values) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "outputs")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(claims=[...])` writes the experiment x, `write("y", rows=[...])` another; there are
    these alone."""
    monkeypatch.setattr(spec, "CONF", tmp_path / "conf")

    def call(name="x", whole=None, **changes):
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        node = {key: value for key, value in {**SPEC, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump({"report": node, **(whole or {})}))

    call()
    return call
