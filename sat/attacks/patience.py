"""When a search's round is given up: it leads nowhere, and another target may.

Each search says how far a row's best point is from a fall, `short`; what is left of the first such
distance, and what was gained lately, tell whether the rest of the round would bring it to 0. The
rules ask more of a larger `patience`, whose usual value is 2, and give up nothing at infinity.

On adversarially trained networks nine of ten targets are hopeless after a few steps. On naturally
trained ones an ascent stalls until its step halves, and falls late: of 17 rounds that fell an image
in the end (a ResNet-20 on CIFAR-10 at eps 1/255, and digits), the pace over ten steps gave up 6;
the rule below, chosen on these, none, at a seventh fewer steps.
"""

import torch
from torch import Tensor

from sat.attacks.network import constant

# A tenth of a round on, an ascent that falls in the end has left at most half of its first
# distance, another tenth on two fifths (at patience 2; none of the 17 had more) ...
EARLY = ((0.1, 1 / 4), (0.2, 1 / 5))
# ... and later, unless a fifth is left or less, gains in a window half of what is left at least:
# each halving of the step gains less than the one before.
LATE = 1 / 10
# A search by random steps or along the boundary, which gains by doublings of its length, goes on
# within a tenth of its first distance.
NEAR = 1 / 20
SOON = 0.06  # of its round before it is asked
# Whether an image at the edge falls is a matter of the start, and of bits that bfloat16 lacks. Of
# 604 images of three networks of digits that stood after a start of each target five more starts,
# in float32, felled 9 and eight no other; where a tenth was left at most, three felled 6.
AGAIN = 1 / 5


def fields(iteration: Tensor, short: Tensor) -> dict[str, Tensor]:
    """What the rules remember of new rows."""
    return {"first": short, "then": iteration, "short_then": short, "due": iteration}


def near(state: dict[str, Tensor]) -> Tensor:
    """Which rows [B] came so near to a fall that another start may bring it."""
    return (state["short"] <= AGAIN * state["first"]) & state["short"].isfinite()


def by_halvings(state: dict[str, Tensor], windows: tuple[int, ...], patience: float) -> Tensor:
    """Which rows [B] of an ascent are hopeless, whose step halves at the ends of `windows` at the
    earliest (for each iteration the length of the window that it ends, or 0)."""
    _remember(state)
    short, gain = state["short"], state["short_then"] - state["short"]
    early, late, ends = (
        constant(part, short.device)[state["iteration"].clamp(max=len(windows) - 1)]
        for part in _asked(windows)
    )
    share = patience * torch.maximum(early, late)
    far = (short > share * state["first"].clamp(min=0)) & ((early > 0) | (short > patience * gain))
    state["short_then"] = torch.where(ends > 0, short, state["short_then"])
    return far & (share > 0)


def _asked(windows: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Gives for each iteration the share of EARLY or of LATE that is asked then, or 0, and whether
    a window ends."""
    count, ends = len(windows), [float(length > 0) for length in windows]
    early = [0.0] * count
    for part, share in EARLY:
        early[max(int(part * (count - 1)), 1) + 1] = share
    first = ends.index(1.0)
    late = [LATE * end * (k > first) for k, end in enumerate(ends)]
    return tuple(early), tuple(late), tuple(ends)


def by_doublings(state: dict[str, Tensor], iterations: int, patience: float) -> Tensor:
    """Which rows [B] of a search are hopeless that gains about as much in each doubling of its
    steps: asked at each, whether as much for the doublings ahead would do."""
    _remember(state)
    short, iteration, then = state["short"], state["iteration"], state["then"]
    soon = max(int(SOON * iterations), 1)
    due = iteration >= state["due"].clamp(min=soon)
    renew = due | (then == 0)
    if not renew.any():  # as in most steps
        return due
    doublings = torch.log2(iteration / then.clamp(min=1)).clamp_(min=1e-6)
    left = torch.log2(iterations / iteration.clamp(min=1))
    ahead = (state["short_then"] - short) * left / doublings
    far = (short > patience * ahead) & (short > patience * NEAR * state["first"])
    over = far & due & (then >= soon)
    state["then"] = torch.where(renew, iteration, then)
    state["short_then"] = torch.where(renew, short, state["short_then"])
    state["due"] = torch.where(renew, 2 * iteration, state["due"])
    return over


def _remember(state: dict[str, Tensor]) -> None:
    """The first distance is that of the first point whose distance is known."""
    unknown = state["first"].isinf()
    if not unknown.any():
        return
    for key in ("first", "short_then"):
        state[key] = torch.where(unknown, state["short"], state[key])
    state["then"] = torch.where(unknown, state["iteration"], state["then"])
