"""Runs the program as a user would: the whole command line, in this process or in its own."""

import gc
import io
import json
import logging
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import warm
from composed import composed_once  # noqa: F401, of all tests
from written import folder, write  # noqa: F401, fixtures of reports

gc.disable()  # until all is imported: a third of that time is spent looking through torch
ROOT = Path(__file__).parents[1]
# A run of a second: few images, few channels, weak attacks. Every other option as it comes.
TINY = [
    "dataset.limit=160", "dataset.holdout=30", "model.width=0.0625", "schedule.epochs=3",
    "schedule.batch_size=32", "validation.attack.steps=2", "evaluation.attacks.pgd20.steps=3",
    "evaluation.limit=50", "schedule.precision=fp32", "evaluation.masking_checks=0",
]  # fmt: skip

# Tests of several seconds each, mostly of processes.
LONGEST = {"test_contributing", "test_crash", "test_distributed", "test_install",
        "test_processes_together", "test_run", "test_sweeps"}  # fmt: skip


def pytest_collection_modifyitems(items):
    """What takes longest comes first, so that no worker waits for another's last test."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.enable()


@pytest.fixture(autouse=True)
def level():
    """What a command of this process shows is no matter of the next test's."""
    log = logging.getLogger("sat")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture(autouse=True)
def onednn():
    """On at the start of each test: a training outside a run leaves it on some processors."""
    torch.backends.mkldnn.enabled = True


@pytest.fixture(scope="session", autouse=True)
def hasty_disk():
    """No test cuts the power: a file is written and renamed, and none is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@dataclass
class Answer:
    """What a command said and left behind."""

    code: int
    out: str
    err: str
    root: Path

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.root.glob("*/config.yaml"))

    @property
    def run(self) -> Path:
        (run,) = self.runs
        return run

    @property
    def result(self) -> dict:
        return json.loads((self.run / "result.json").read_text())


def ended(*arguments: str) -> int:
    """The command in this process; its exit code."""
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    from sat.loggers import screen
    from sat.run import main

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(sys, "argv", ["sat", *arguments])
        if not any("hydra.mode" in word or "experiment" in word for word in arguments):
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes all to learn that
        for handler in list(screen.log.handlers):  # its streams belong to an earlier test
            screen.log.removeHandler(handler)
        try:
            main()
        except SystemExit as end:
            return end.code
        finally:
            GlobalHydra.instance().clear()
            torch.set_num_threads(threads)


def made(root: Path, *arguments: str) -> Path:
    """The directory of a run that a fixture of many tests makes in this process."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        code = ended(f"record.root={root}", *arguments)
    assert code == 0, said.getvalue()
    return Answer(0, "", "", root).run


@pytest.fixture
def sat(tmp_path, monkeypatch, capfd):
    """`sat("attack.steps=2")` in this process, on a tiny run, with results in tmp_path."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*arguments: str, tiny: bool = True, root: Path | None = None) -> Answer:
        root = root or tmp_path / "outputs"
        capfd.readouterr()
        code = ended(f"record.root={root}", *(TINY if tiny else ()), *arguments)
        out, err = capfd.readouterr()
        return Answer(code, out, err, root)

    return call


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The tiny run as `sat()` leaves it, made once for all that only begin from it; untouched."""
    return made(tmp_path_factory.mktemp("default"), *TINY)


@pytest.fixture
def ran(default_run, tmp_path):
    """What `sat()` leaves in tmp_path, without its words."""
    shutil.copytree(default_run, tmp_path / "outputs" / default_run.name)
    return Answer(0, "", "", tmp_path / "outputs")


@pytest.fixture
def watched_workers(monkeypatch):
    """A data loader that looks every 0.1 s whether its workers live, not every 5."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader

    monkeypatch.setattr(Loader._try_get_data, "__defaults__", (0.1,))


def command(*arguments: str, module: bool = True) -> list[str]:
    """The real command, for a process of its own."""
    return [sys.executable, "-m", "sat.run", *arguments] if module else ["sat", *arguments]


def start(cwd: Path, *arguments: str) -> warm.Command:
    """The tiny run as a process of its own, results in cwd/outputs."""
    return warm.Command(command(*TINY, *arguments), cwd, os.environ | {"PYTHONPATH": str(ROOT)})


def trained_on_digits(model, epochs: int, batch: int):
    """`model` after PGD-1 training at eps 25/255 on 1,400 of scikit-learn's digits, in eval mode;
    and the other images x [N, 1, 8, 8] with labels y [N]."""
    import torch.nn.functional as F
    from sklearn.datasets import load_digits

    from sat.attacks import PGD
    from sat.rng import RowRng

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(images).float() / 16).view(-1, 1, 8, 8)[order]
    y = torch.tensor(labels)[order]
    optimizer, attack = torch.optim.Adam(model.parameters(), 3e-3), PGD(25.0, 1)
    for epoch in range(epochs):
        for k, part in enumerate(torch.arange(1400).split(batch)):
            x_adv = attack(model, x[part], y[part], RowRng(epoch * 100 + k, part))
            optimizer.zero_grad()
            F.cross_entropy(model(x_adv), y[part]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval(), x[1400:], y[1400:]


def small_network():
    """Two convolutions and a batch norm, for 8x8 pixels of 10 classes."""
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
