"""What `auto` stands for here: the precision, layout, compilation and threads that pay."""

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import nn

from sat.acceleration.compilation import compiles
from sat.acceleration.precision import channels_last_pays, set_tf32, tf32_kept
from sat.acceleration.processor import cpu_has_bf16
from sat.launch import processes

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
THREADS = torch.get_num_threads()  # a run of a sweep must not inherit what the one before chose
ONE_THREAD_BELOW = 1_000_000_000  # multiply-adds of a batch's forward
COMPILE_PAYS_FROM = 2000  # updates on a GPU; compilation takes up to a minute
# Multiply-adds of a training's updates on a CPU: with PGD-1 nearly two hours at half a TFLOP/s, of
# which a compiled network saves 6 % at best on AVX-512, and takes half a minute.
COMPILE_PAYS_FROM_WORK = 1e15
# The same beside a graph, where a compiler saves arithmetic alone: 15 % of the kernels' time of a
# ResNet-18 on an H200, at 1e14 operations a second, for 24 s of compilation.
COMPILE_PAYS_BESIDE_GRAPH = 1e16
# A graph saves launches. Multiply-adds of a batch's forward below which a GPU waits for them: at
# 7e10 (ResNet-18 on 128 images of 32 pixels) two thirds of the time, at 1e12 none.
GRAPH_PAYS_BELOW = 3e11
GRAPH_PAYS_FROM = 100  # updates; capturing one takes a few
FUSED = ("sgd", "momentum", "adamw")  # optimisers whose step torch has in one launch

Switch = bool | Literal["auto"]


class Asked(Protocol):
    """What a schedule asks for, see `sat.training.schedule.Schedule`."""

    epochs: float
    batch_size: int
    optimizer: str
    precision: str
    channels_last: Switch
    compile: Switch | Literal["reduce-overhead"]
    graph: Switch
    fold: Switch
    fused: Switch
    tf32: Switch
    shard: bool
    grad_checkpointing: bool

    @property
    def cycles_momentum(self) -> bool: ...
    @property
    def parts(self) -> int: ...

    def steps(self, images: int) -> int: ...


def bf16_pays(kind: str) -> bool:
    """Whether a device of this kind has bfloat16 arithmetic: a GPU is asked, a CPU by its flags."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16()


def multiply_adds(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one image's forward: convolutions and matrix products, by torch's count."""
    from torch.utils.flop_counter import FlopCounterMode

    device, training = next(model.parameters()).device, model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape, device=device))
    model.train(training)
    return counter.get_total_flops() // 2


def depthwise(model: nn.Module) -> bool:
    """Whether it has depthwise convolutions, as EfficientNet does."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(c.groups == c.in_channels > 1 for c in convolutions)


def auto_precision(kind: str, scattered: bool, small: bool) -> str:
    """The precision in which a training on a device of this kind is fastest, by rule.

    On a CPU float32 for `small` steps, whose casts cost what their products save (8x8 digits: as
    fast as bfloat16 within 5 %, and one command gives the same numbers on more machines), and for
    `scattered` networks, with depthwise convolutions, for which it has no good bfloat16 kernel: an
    EfficientNet-b0 of 16 pixels took 203 ms a step in float32, 475 and more in bfloat16.
    """
    return "bf16" if bf16_pays(kind) and not (kind == "cpu" and (scattered or small)) else "fp32"


def is_small(batch_cost: float) -> bool:
    """Whether a step is too small to be shared among cores; by a batch's forward."""
    return batch_cost < ONE_THREAD_BELOW


def _captured(schedule: Asked, device: torch.device, images: int, image_cost: int) -> bool:
    """Whether a step is taken as one graph: on a GPU that would wait for its launches."""
    possible = schedule.fused is not False and schedule.optimizer in FUSED
    possible = possible and not schedule.cycles_momentum  # which a graph would hold fast
    possible = possible and not schedule.grad_checkpointing  # torch asks for a state of chance
    if device.type != "cuda" or not possible or schedule.compile == "reduce-overhead":
        return False
    waits = image_cost * schedule.batch_size / schedule.parts < GRAPH_PAYS_BELOW
    return waits and schedule.steps(images) >= GRAPH_PAYS_FROM


def _compiled(
    schedule: Asked, device: torch.device, images: int, image_cost: int, graph: bool
) -> bool:
    """Whether a run is long enough for its compilation, where there is a compiler."""
    if schedule.compile != "auto":
        return False
    work = 3 * image_cost * images * schedule.epochs
    if device.type != "cuda":
        pays = work >= COMPILE_PAYS_FROM_WORK
    elif graph:
        pays = work >= COMPILE_PAYS_BESIDE_GRAPH
    else:
        pays = schedule.steps(images) >= COMPILE_PAYS_FROM
    return pays and compiles(device)


def choose(
    schedule: Asked, device: torch.device, images: int, image_cost: int, scattered: bool
) -> dict[str, str | bool | int]:
    """What `auto` stands for in this run: chosen once, kept in its checkpoint.

    `image_cost` is in multiply-adds. A step too small to share among cores runs on one: its
    threads would wait for each other more than they compute, above all on a busy machine. One of
    several processes compiles and captures nothing; without whole weights it folds none either.
    """
    whole = not schedule.shard
    alone = whole and processes()[1] == 1
    precision, on_gpu = schedule.precision, device.type == "cuda"
    small = is_small(image_cost * schedule.batch_size)
    if precision == "auto":
        precision = auto_precision(device.type, scattered, small)
    given = lambda asked, usual: usual if asked == "auto" else asked  # noqa: E731
    run = (schedule, device, images, image_cost)
    graph = given(schedule.graph, alone and _captured(*run))
    return {
        "precision": precision,
        "channels_last": given(schedule.channels_last, channels_last_pays(device.type, precision)),
        "compile": given(schedule.compile, alone and _compiled(*run, graph)),
        "graph": graph,
        "fold": given(schedule.fold, whole and precision != "fp16"),
        "fused": given(schedule.fused, whole and schedule.optimizer in FUSED),
        "tf32": given(schedule.tf32, on_gpu),
        "threads": 1 if small else THREADS,
        "accumulate": schedule.parts,
    }


def settle(choices: Mapping[str, Any]) -> None:
    """Gives the process the threads and the TF32 that were chosen."""
    torch.set_num_threads(choices["threads"])
    set_tf32(choices["tf32"])


@contextmanager
def unsettled() -> Iterator[None]:
    """On leaving, the process has its own threads, TF32 and leniency of the compiler again, and
    what it does where a child ends."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    compiler = "torch._dynamo"  # imported where it is used
    lenient = compiler in sys.modules and torch._dynamo.config.suppress_errors
    child = signal.getsignal(signal.SIGCHLD)
    try:
        with tf32_kept():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn
        if compiler in sys.modules:
            torch._dynamo.config.suppress_errors = lenient
        if child is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, child)
