"""What `auto` stands for."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from sat.acceleration import auto
from sat.acceleration.auto import auto_precision, choose, depthwise
from sat.acceleration.precision import channels_last_pays, lay_out
from sat.models import EfficientNet, ResNet
from sat.training.schedule import Schedule

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fast_bf16(monkeypatch):
    """A machine on which bfloat16 products pay, whatever this one is."""
    monkeypatch.setattr(auto, "bf16_pays", lambda kind: True)


def test_depthwise_convolutions_are_found_and_grouped_ones_are_none():
    with torch.device("meta"):
        assert depthwise(EfficientNet("b0")(3, 10, 32))
        assert not depthwise(ResNet(18)(3, 10, 32))
        assert not depthwise(ResNet(50, cardinality=32, base_width=4)(3, 10, 32))


def test_on_a_cpu_they_are_float32_and_channels_last():
    assert auto_precision("cpu", scattered=True) == "fp32"
    assert auto_precision("cpu", False) == auto_precision("cuda", True) == "bf16"
    small = choose(Schedule(), CPU, 1000, 1_000_000, scattered=True)
    assert (small["precision"], small["channels_last"]) == ("fp32", True)
    small = choose(Schedule(), CPU, 1000, 1_000_000, scattered=False)
    assert (small["precision"], small["channels_last"]) == ("bf16", True)
    large = choose(Schedule(), GPU, 1000, 1_000_000_000, scattered=True)
    assert (large["precision"], large["channels_last"]) == ("bf16", True)
    assert not choose(Schedule(precision="fp32"), GPU, 1000, 10**9, False)["channels_last"]


def test_what_is_asked_for_is_kept():
    asked = Schedule(precision="bf16", channels_last=False, compile=True)
    made = choose(asked, CPU, 1000, 1_000_000, scattered=True)
    assert (made["precision"], made["channels_last"], made["compile"]) == ("bf16", False, True)


def test_a_small_step_runs_on_one_thread():
    assert choose(Schedule(), CPU, 1000, 1_000_000, False)["threads"] == 1
    assert choose(Schedule(), CPU, 1000, 10**9, False)["threads"] == auto.THREADS


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets are x86's")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_a_cpu_without_bf16_arithmetic_computes_in_float32(isa):
    """Asked of torch it would say that it has some: it is emulated, up to 200 times slower."""
    code = "from sat.hardware import auto_precision; print(auto_precision('cpu', False))"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=limited, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert told.stdout.strip() == "fp32", told.stderr


def test_a_layout_is_that_of_weights_and_images():
    model = ResNet(10, 0.25)(3, 10, 16)
    for channels_last, format in ((True, torch.channels_last), (False, torch.contiguous_format)):
        lay_out(model, channels_last)
        assert model.channels_last is channels_last
        weight = model.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=format)


def test_verdicts_have_channels_last_but_on_a_gpu():
    assert channels_last_pays("cpu", "fp32") and channels_last_pays("cuda", "bf16")
    assert not channels_last_pays("cuda", "fp32")
