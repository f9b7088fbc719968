"""What `auto` stands for."""

import pytest
import torch

from sat.acceleration import auto, processor
from sat.acceleration.auto import auto_precision, choose, depthwise, unsettled
from sat.acceleration.precision import channels_last_pays, lay_out
from sat.models import EfficientNet, ResNet
from sat.training.schedule import Schedule

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fast_bf16(monkeypatch):
    """A machine with bfloat16 arithmetic, whatever this one is."""
    monkeypatch.setattr(auto, "bf16_pays", lambda kind: True)


def test_depthwise_convolutions_are_found_and_grouped_ones_are_none():
    with torch.device("meta"):
        assert depthwise(EfficientNet("b0")(3, 10, 32))
        assert not depthwise(ResNet(18)(3, 10, 32))
        assert not depthwise(ResNet(50, cardinality=32, base_width=4)(3, 10, 32))


def test_on_a_cpu_they_are_float32_and_channels_last():
    assert auto_precision("cpu", scattered=True, small=False) == "fp32"
    assert auto_precision("cpu", False, small=False) == "bf16"
    assert auto_precision("cuda", True, small=True) == "bf16"
    made = choose(Schedule(), CPU, 1000, 50_000_000, scattered=True)
    assert (made["precision"], made["channels_last"]) == ("fp32", True)
    made = choose(Schedule(), CPU, 1000, 50_000_000, scattered=False)
    assert (made["precision"], made["channels_last"]) == ("bf16", True)
    large = choose(Schedule(), GPU, 1000, 1_000_000_000, scattered=True)
    assert (large["precision"], large["channels_last"]) == ("bf16", True)
    assert not choose(Schedule(precision="fp32"), GPU, 1000, 10**9, False)["channels_last"]


def test_what_is_asked_for_is_kept():
    asked = Schedule(precision="bf16", channels_last=False, compile=True)
    made = choose(asked, CPU, 1000, 1_000_000, scattered=True)
    assert (made["precision"], made["channels_last"], made["compile"]) == ("bf16", False, True)


def test_a_small_step_runs_on_one_thread_in_float32():
    made = choose(Schedule(), CPU, 1000, 1_000_000, scattered=False)
    assert (made["precision"], made["threads"]) == ("fp32", 1)
    assert choose(Schedule(), CPU, 1000, 10**9, False)["threads"] == auto.THREADS


@pytest.mark.parametrize(
    "flags, environment, has",
    [
        ("avx512_bf16", {}, True),
        ("amx_bf16", {"ONEDNN_MAX_CPU_ISA": "avx512_core_amx"}, True),
        ("amx_bf16", {"ONEDNN_MAX_CPU_ISA": "ALL", "ATEN_CPU_CAPABILITY": "avx512"}, True),
        ("avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, False),
        ("amx_bf16", {"DNNL_MAX_CPU_ISA": "AVX2"}, False),
        ("amx_bf16", {"ATEN_CPU_CAPABILITY": "avx2"}, False),
        ("avx512f", {}, False),
        ("", {}, False),
    ],
)
def test_a_cpu_has_bf16_by_its_flags_less_what_caps_them(monkeypatch, flags, environment, has):
    """torch would say that it has some: it is emulated, up to 220 times slower."""
    monkeypatch.setattr(processor, "flags", lambda: frozenset(flags.split()))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processor.cpu_has_bf16() is has


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


@pytest.mark.parametrize(
    ("has", "cap", "channels", "kernel", "stride", "on"),
    [
        ({"avx2"}, "", 4, 1, 2, False),
        ({"avx2", "avx512f"}, "AVX2", 4, 1, 2, False),
        ({"avx2", "avx512f"}, "AVX512_CORE", 4, 1, 2, True),
        ({"avx2", "avx512f"}, "", 4, 1, 2, True),
        ({"avx2"}, "", 8, 1, 2, True),
        ({"avx2"}, "", 4, 1, 1, True),
        ({"avx2"}, "", 4, 3, 2, True),
        (set(), "", 4, 1, 2, True),
    ],
)
def test_a_kernel_that_writes_beyond_its_memory_is_left(
    has, cap, channels, kernel, stride, on, monkeypatch
):
    monkeypatch.setattr(processor, "flags", lambda: frozenset(has))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    with unsettled():
        torch.backends.mkldnn.enabled = True
        net = torch.nn.Sequential(torch.nn.Conv2d(channels, 8, kernel, stride))
        processor.leave_onednn(net.to("meta"))  # not on a CPU
        assert torch.backends.mkldnn.enabled
        processor.leave_onednn(net.to_empty(device="cpu"))
        assert torch.backends.mkldnn.enabled == on
