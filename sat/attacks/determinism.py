"""Whether a network answers alike: in each call, and for an image whatever its batch. Verdicts are
of such networks alone."""

import torch
from torch import Tensor, nn

from sat.acceleration.precision import autocast_of
from sat.attacks.outcomes import at_stake
from sat.errors import Refused

RANDOM = 1e-4  # more than this from call to call is chance; AutoAttack's limit
TOGETHER = 0.02  # half precision moves the median image by 0.8 % at most, batch statistics by more
CALLS = 8  # of a network that may answer otherwise now and then only


def moved(once: Tensor, again: Tensor) -> float:
    """Tells by how much the logits [B, K] of the same images differ from one call to the next, as a
    share of those at stake; 0 for a network that always answers alike."""
    same = (once == again) | (once.isnan() & again.isnan())
    by = torch.where(same, 0.0, (once - again).abs().nan_to_num(torch.inf)).amax(1)
    return float((by / at_stake(once, 2).clamp_min(1e-12)).nan_to_num(torch.inf).max())


@torch.no_grad()
def varies(model: nn.Module, x: Tensor) -> float:
    """The most by which the logits of x [B, C, H, W] move in several calls, as `moved` has it."""
    once, most = model(x), 0.0
    for _ in range(CALLS - 1):
        if (most := max(most, moved(once, model(x)))) > RANDOM:
            break
    return most


@torch.no_grad()
def check_repeats(model: nn.Module, x: Tensor) -> None:
    """Refuses a network with chance in it, and one whose answer for an image depends on those
    beside it: each of its verdicts would be another number."""
    if len(x) and (share := varies(model, x)) > RANDOM:
        raise Refused(
            f"model: its logits change by {share:.1%} from call to call, and so would each verdict:"
            " call model.eval() before it is wrapped (dropout left on?), take out its noise, or"
            " average over it: sat.attacks.AutoAttack(eps, version='rand') (evaluation=autoattack"
            " evaluation.attacks.autoattack.version=rand)"
        )
    exact = autocast_of(model) is None
    if len(x) > 1 and exact and (share := goes_by_batch(model, x)) > TOGETHER:
        raise Refused(
            f"model: the logits of an image change by {share:.0%} with the other images of its"
            " batch, and so would its verdict: call model.eval() before it is wrapped in a"
            " function, traced or exported; or what is quantised goes by the batch, then let the"
            " function take images one by one"
        )


@torch.no_grad()
def goes_by_batch(model: nn.Module, x: Tensor) -> float:
    """How far logits of images x [B, C, H, W] move where each is asked alone, see `shift`."""
    return shift(torch.cat([model(image) for image in x.split(1)]), model(x))


def shift(once: Tensor, again: Tensor) -> float:
    """How far the three largest logits [B, K] of the middle image differ from others of the
    same images, as a share of those at stake: rounding moves few images by much."""
    return max(_shift(once, again), _shift(again, once))


def _shift(once: Tensor, again: Tensor) -> float:
    top = once.topk(min(3, once.shape[1])).indices
    ours, theirs = once.gather(1, top), again.gather(1, top)
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    by = torch.where(same, 0.0, (ours - theirs).abs().nan_to_num(torch.inf)).amax(1)
    shares = (by / at_stake(once, 3).clamp_min(1e-12)).nan_to_num(torch.inf)
    return float(shares.sort().values[len(shares) // 2])
