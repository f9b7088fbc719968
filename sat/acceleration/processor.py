"""Which arithmetic the processor has: by its flags and by what caps them, never by a timing."""

import os
from functools import cache
from pathlib import Path

import torch
from torch import nn

# Flags of processors whose bfloat16 products were seen to be 3 to 10 times as fast as float32's.
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
# Instruction sets by which oneDNN's products of bfloat16 are as fast as the processor's.
_BF16_SETS = ("BF16", "FP16", "AMX", "AVX10")


def cpu_has_bf16() -> bool:
    """Whether products of bfloat16 are computed as such and not emulated.

    torch's own answer is no ground: emulated, they are 3 times slower than float32's usual pace
    where oneDNN is capped to AVX512_CORE, and 220 times where it is capped to AVX2.
    """
    return bool(BF16_FLAGS & flags()) and not _capped()


@cache
def flags() -> frozenset[str]:
    """The processor's flags as Linux tells them; elsewhere none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _cap() -> str:
    """The instruction set that the environment holds oneDNN to; ALL where it names none."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    return next((os.environ[name].upper() for name in names if os.environ.get(name)), "ALL")


def _capped() -> bool:
    """Whether the environment forbids the sets that the flags promise."""
    aten = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    allowed = _cap() in ("ALL", "DEFAULT") or any(part in _cap() for part in _BF16_SETS)
    return not allowed or aten in ("default", "avx2")


def leave_onednn(model: nn.Module) -> None:
    """Has a CPU train `model` without oneDNN where that would write beyond its memory.

    Its kernel for a processor of AVX2 alone, `jit_avx2_1x1_convolution_bwd_weights`, does so in the
    gradient of 1x1 convolutions with a stride, on channels that are no multiple of eight: seen with
    valgrind on four of them, torch 2.14.1; the process dies some steps later.
    """
    avx2 = "avx2" in flags() and ("avx512f" not in flags() or _cap().startswith("AVX2"))
    on_cpu = all(weight.device.type == "cpu" for weight in model.parameters())
    narrow = (m.in_channels % 8 and max(m.stride) > 1 for m in model.modules()
              if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))  # fmt: skip
    if avx2 and on_cpu and any(narrow):
        torch.backends.mkldnn.enabled = False
