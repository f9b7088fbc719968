"""Which device a run computes on."""

import torch

from sat.launch import local_size, processes


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
    if device.type == "mps":
        raise ValueError(f"={asked}: nobody has tried the GPUs of a Mac yet; write device=cpu")
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
