"""Which images are trained on and which are held out: exact stratified choices."""

from typing import Any, Literal

import torch
from torch import Tensor

from sat.rng import seed_of


def check_choice(limit: int | None, holdout: float) -> None:
    """Refuse a `limit` or `holdout` that suits no set."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: write a number of training images, or null for all")
    if not holdout >= 0 or (holdout > 1 and not float(holdout).is_integer()):
        raise ValueError(
            f"holdout={holdout:g}: write a fraction of the training images (0.1) or a whole number "
            "of them; 0 trains on all, and chooses no best checkpoint"
        )


def stratified(
    labels: Tensor, count: int, generator: torch.Generator, least: int = 0, spare: int = 0
) -> Tensor:
    """Ascending indices of `count` images, every class in proportion to its size.

    Each class keeps at least `spare` images and gives at least `least`, or all others it has.
    """
    sizes = torch.bincount(labels)
    quota = _quota(sizes, count, least, spare)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    own = labels[order]
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[own]  # within its class
    return order[place < quota[own]].sort().values


def _quota(sizes: Tensor, count: int, least: int, spare: int) -> Tensor:
    """How many of each class: the largest remainders are rounded up, within the bounds."""
    highest = sizes - spare
    lowest = highest.clamp(max=least)
    assert lowest.sum() <= count <= highest.sum()
    share = sizes.double() * count / sizes.sum()
    quota = share.long().clamp(lowest, highest)
    while (missing := count - int(quota.sum())) != 0:
        step = 1 if missing > 0 else -1
        gain = (share - quota) * step
        gain[quota == (highest if missing > 0 else lowest)] = -torch.inf
        quota[gain.argmax()] += step
    return quota


def take_limit(labels: Tensor, limit: int | None) -> Tensor:
    """Ascending indices of the training images in use; the choice is the same in every run."""
    if limit is None:
        return torch.arange(len(labels))
    classes = len(torch.bincount(labels))
    if not 2 * classes <= limit <= len(labels):
        raise ValueError(
            f"limit={limit}: the set has {len(labels)} training images; write {2 * classes} (two "
            f"of each class) to {len(labels)}, or null for all"
        )
    return stratified(labels, limit, torch.Generator().manual_seed(0), least=2)


def split_part(split: Any, limit: int | None) -> Tensor:
    """Ascending indices of `limit` images of a split, every class in proportion, always the same;
    the first ones where the labels are not known before they are read. None: all."""
    if limit is None or limit >= len(split):
        return torch.arange(len(split))
    if split.labels.min() < 0:
        return torch.arange(limit)
    return stratified(split.labels, limit, torch.Generator().manual_seed(0))


def held_out_count(holdout: float, images: int) -> int:
    """How many images `holdout` means, given that many training images."""
    return int(holdout) if holdout >= 1 or holdout == 0 else max(round(holdout * images), 1)


Place = Literal["drawn", "first", "last"]


def split_training(
    labels: Tensor, limit: int | None, holdout: float, seed: int, place: Place = "drawn"
) -> tuple[Tensor, Tensor]:
    """Ascending indices of the images to train on and of those held out of them, which may be the
    set's `first` or `last`. None are with holdout=0.

    Of drawn ones at least one image of every class is in each part, and the seed moves them, never
    the choice that `limit` makes. `ValueError` where the images do not suffice, or where the first
    or the last leave a part without a class.
    """
    if holdout == 0:
        return take_limit(labels, limit), torch.empty(0, dtype=torch.int64)
    sizes = torch.bincount(labels)
    scarce = int(sizes.argmin())
    if sizes[scarce] < 2:
        raise ValueError(
            f"holdout={holdout:g}: class {scarce} has {sizes[scarce]} training images; two are "
            "needed, one to train on and one to hold out"
        )
    chosen = take_limit(labels, limit)
    count = held_out_count(holdout, len(chosen))
    if holdout < 1:
        count = max(count, len(sizes))
    if not len(sizes) <= count <= len(chosen) - len(sizes):
        raise ValueError(
            f"holdout={holdout:g}: {count} of {len(chosen)} training images; at least one of each "
            f"of the {len(sizes)} classes must be held out, and one must remain"
        )
    if place != "drawn":
        ends = torch.arange(len(chosen)) < count
        held = ends if place == "first" else ends.flip(0)
        for kept, part in ((~held, "those trained on"), (held, "those held out")):
            found = torch.bincount(labels[chosen[kept]], minlength=len(sizes))
            if not found.all():
                raise ValueError(
                    f"holdout_from={place}: class {int(found.argmin())} is not among {part}; write"
                    " drawn, or a larger holdout where the set isn't sorted by class"
                )
        return chosen[~held], chosen[held]
    generator = torch.Generator().manual_seed(seed_of(seed, "held-out"))
    held_out = stratified(labels[chosen], count, generator, least=1, spare=1)
    remains = torch.ones(len(chosen), dtype=torch.bool)
    remains[held_out] = False
    return chosen[remains], chosen[held_out]
