"""What this machine does well: the device, and the precision and layout that pay on it."""

import time
from functools import cache

import torch
from torch import nn

from sat.acceleration.compilation import compiles
from sat.acceleration.precision import channels_last_pays
from sat.launch import local_size, processes
from sat.training.schedule import FUSED, Schedule

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
THREADS = torch.get_num_threads()  # a run of a sweep must not inherit what the one before chose
ONE_THREAD_BELOW = 1_000_000_000  # multiply-adds of a batch's forward
COMPILE_PAYS_FROM = 2000  # updates on a GPU; compilation takes up to a minute
# Multiply-adds of a training's updates on a CPU: with PGD-1 nearly two hours at half a TFLOP/s, of
# which a compiled network saves 6 % at best on AVX-512, and takes half a minute.
COMPILE_PAYS_FROM_WORK = 1e15


def find_device(asked: str, seat: int = 0) -> torch.device:
    """`auto` is a GPU where there is one; where there are more, processes side by side take them in
    turn, by their `seat`, and the processes of one run have one each. Raises ValueError for a
    device that is not there."""
    shared = processes()[1] > 1
    if shared and asked.startswith("cuda:"):
        raise ValueError(f"={asked}: is one GPU for all processes; write device=auto")
    if asked == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if asked == "auto" or shared and asked == "cuda":
        if shared and local_size() > (count := torch.cuda.device_count()):
            raise ValueError(
                f"={asked}: {count} GPU here for {local_size()} processes; torchrun"
                f" --nproc-per-node={count}"
            )
        return torch.device("cuda", seat % torch.cuda.device_count())
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"={asked}: is not one of auto, cpu, cuda, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"={asked}: {count or 'no'} GPU here; write device=cpu or auto")
    return device


def settle_on(device: torch.device) -> None:
    """Makes it the device of this process: what names no device would open the first GPU, too."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


@cache
def bf16_pays(kind: str) -> bool:
    """Whether bfloat16 products are fast here: asked of a GPU, timed on a CPU.

    A CPU without bfloat16 arithmetic emulates it, up to 200 times slower, and its own answer to
    the question is not to be relied on; one with it is 3 to 8 times as fast as in float32.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        a @ a  # the first product of a kind is slow
        times = []
        for _ in range(20):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32] / 1.5


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


def auto_precision(kind: str, scattered: bool) -> str:
    """Of a training on a device of this kind; `scattered`: with depthwise convolutions.

    For those a CPU has no good bfloat16 kernel: an EfficientNet-b0 of 16 pixels took 203 ms a step
    in float32 and channels_last, 475 and more in bfloat16, 483 without channels_last.
    """
    return "bf16" if bf16_pays(kind) and not (scattered and kind == "cpu") else "fp32"


def _long(schedule: Schedule, device: torch.device, images: int, image_cost: int) -> bool:
    """Whether a run earns its compilation, where there is a compiler."""
    if schedule.compile != "auto" or schedule.shard or processes()[1] > 1:
        return False
    work = 3 * image_cost * images * schedule.epochs
    on_gpu, steps = device.type == "cuda", schedule.steps(images)
    long = steps >= COMPILE_PAYS_FROM if on_gpu else work >= COMPILE_PAYS_FROM_WORK
    return long and compiles(device)


def choose(
    schedule: Schedule, device: torch.device, images: int, image_cost: int, scattered: bool
) -> dict[str, str | bool | int]:
    """What `auto` stands for in this run: chosen once, kept in its checkpoint.

    `image_cost` is in multiply-adds. A step too small to share among cores runs on one: its
    threads would wait for each other more than they compute, above all on a busy machine.
    """
    precision, on_gpu = schedule.precision, device.type == "cuda"
    if precision == "auto":
        precision = auto_precision(device.type, scattered)
    small = image_cost * schedule.batch_size < ONE_THREAD_BELOW
    given = lambda asked, usual: usual if asked == "auto" else asked  # noqa: E731
    return {
        "precision": precision,
        "channels_last": given(schedule.channels_last, channels_last_pays(device.type, precision)),
        "compile": given(schedule.compile, _long(schedule, device, images, image_cost)),
        "fold": given(schedule.fold, precision != "fp16"),
        "fused": given(schedule.fused, schedule.optimizer in FUSED and not schedule.shard),
        "tf32": given(schedule.tf32, on_gpu),
        "threads": 1 if small else THREADS,
        "accumulate": schedule.parts,
    }
