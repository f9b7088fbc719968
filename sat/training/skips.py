"""Steps that change nothing, because a loss or a gradient was no finite number: the device decides,
and tells the host at the next log."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sat.errors import Diverged
from sat.rundir.result import Alarm
from sat.statistics import beyond

# One bad batch passes; weights that have no finite gradient for this many batches, one after the
# other, are themselves at fault.
RUNNING = 10
REMEDY = "try a lower schedule.learning_rate, schedule.clip=1, or schedule.precision=fp32"


class Skips:
    """How many updates were skipped, and how many one after the other, `replays` of them a step;
    counted on `device`."""

    def __init__(self, device: torch.device, replays: int = 1):
        self.replays = replays
        # updates so far; skipped ones; those in a row up to now, and at most; the last one's number
        self.counts = torch.zeros(5, dtype=torch.int64, device=device)
        self.skipped, self.told, self.last = 0, 0, 0  # as they were last read

    def count(self, broken: Tensor) -> None:
        """One update, after it was taken or skipped."""
        step, skipped, running, longest, last = self.counts.unbind()
        skipped += broken
        running.add_(1).mul_(broken)
        torch.maximum(longest, running, out=longest)
        last.copy_(torch.where(broken, step, last))
        step += 1

    def all_skipped(self) -> bool:
        """Whether no step was taken yet; the host looks."""
        steps, skipped, *_ = self.counts.tolist()
        return steps == skipped

    def read(self, counts: list[int]) -> list[str]:
        """Takes in what the device has counted; returns what is to be said of it. The first is
        told, and whenever they are twice as many: a fault that stays floods no log. Raises Diverged
        after `RUNNING` of them, one after the other."""
        _, self.skipped, _, longest, last = counts
        self.last = last // self.replays  # the step of it
        if longest >= RUNNING * self.replays:
            raise Diverged(
                f"the loss or a gradient is not finite in {longest // self.replays} steps, one"
                f" after the other, up to step {self.last}; {REMEDY}"
            )
        if self.skipped < max(1, 2 * self.told):
            return []
        self.told = self.skipped
        said = f"step {self.last}: the loss or a gradient is not finite; skipped"
        return [f"{said} ({self.skipped} so far)"]

    def check_taken(self, steps: int) -> Alarm | None:
        """An alarm at the end of a training of which more than a hundredth of the updates in
        `steps` were skipped, and not by chance. Raises Diverged where none was taken."""
        steps *= self.replays
        if self.skipped and self.skipped == steps:
            raise Diverged(
                f"no step was taken: the loss or a gradient is not finite in all {steps}; {REMEDY}"
            )
        if not beyond(self.skipped, steps, 0.01):
            return None
        message = (
            f"{self.skipped} of {steps} steps changed nothing, since the loss or a gradient was not"
            f" finite: the run is shorter than it says; {REMEDY}"
        )
        return Alarm("skipped_steps", message, {"skipped": self.skipped, "steps": steps})

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])
        _, self.skipped, _, _, last = state["counts"].tolist()
        self.last = last // self.replays
        self.told = self.skipped


class Statistics:
    """What a forward moves, such as batch norm's statistics, and what it was before the step; each
    type in one piece of memory, so that a step costs a few launches."""

    def __init__(self, tensors: Iterable[Tensor]):
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        self._groups = [_Group(group) for group in by_type.values()]
        self.kept = False  # in the step that is taken

    def keep(self) -> None:
        self.kept = True
        for group in self._groups:
            torch._foreach_copy_(group.before, group.tensors)

    def put_back(self, broken: Tensor | None = None) -> None:
        """What was kept; with `broken`, a truth on the device, only where that is so."""
        if not self.kept:  # what there is was kept in the step before
            return
        for group in self._groups:
            values = group.before
            if broken is not None:
                torch._foreach_copy_(values := group.after, group.tensors)
                torch.where(broken, group.flat_before, group.flat_after, out=group.flat_after)
            torch._foreach_copy_(group.tensors, values)


class _Group:
    """Tensors of one type, and two copies of them, flat and in their shapes."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors
        self.flat_before, self.flat_after = (
            torch.cat([tensor.flatten() for tensor in tensors]) for _ in range(2)
        )
        self.before, self.after = map(self._shaped, (self.flat_before, self.flat_after))

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([tensor.numel() for tensor in self.tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, self.tensors, strict=True)]
