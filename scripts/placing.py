"""Where labels go, so that none covers another: beside points, and at the ends of lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DISTANCES = (6, 9, 13, 18, 25, 33, 42, 54, 68, 84, 102, 122, 145, 170)  # points
LEADER = 9.0  # points: a label farther off than this gets a line to its mark
LABEL, MARK, SPECK, LINE = 1e5, 300.0, 5.0, 80.0  # what covering one of these costs, in points
DOUBT = 150.0  # what standing nearer to another mark costs, without a leader
ROUNDS = 6


@dataclass(frozen=True)
class Spots:
    """Where one label may go, in points: C boxes with leaders and what each costs by itself."""

    low: np.ndarray  # [C, 2], left and bottom
    high: np.ndarray  # [C, 2], right and top
    leaders: np.ndarray  # [C, 24, 2], from the mark to the box
    led: np.ndarray  # [C], is the leader drawn?
    costs: np.ndarray  # [C]


def beside(
    axes: Any, places: Sequence[tuple[float, float]], labels: Sequence[str], specks: Any
) -> list[Any]:
    """A label near each place (data), inside the axes; `specks` [K, 2] had better stay visible.

    Each takes the cheapest of its spots given the others, in turn, until none moves, and the best
    of several orders counts: distance costs, covering costs more, and covering another label more
    than anything else. The figure's layout must be final. 12 labels: about half a second.
    """
    unit = axes.figure.dpi / 72
    at = axes.transData.transform(np.asarray(places, float)) / unit
    specks = axes.transData.transform(np.asarray(specks, float).reshape(-1, 2)) / unit
    frame = axes.get_window_extent().extents.reshape(2, 2) / unit
    sizes = [_size(axes, label) / unit + (3, 1) for label in labels]
    spots = [_spots(p, size, frame, at, specks) for p, size in zip(at, sizes, strict=True)]
    crowded = sorted(range(len(at)), key=lambda k: np.sort(np.hypot(*(at - at[k]).T))[:3].sum())
    orders = crowded, crowded[::-1], np.argsort(at[:, 1]), np.argsort(at[:, 0])
    _, chosen = min((_settle(spots, order) for order in orders), key=lambda found: found[0])
    return [_write(axes, labels[k], places[k], at[k], spots[k], chosen[k]) for k in range(len(at))]


def _settle(spots: Sequence[Spots], order: Sequence[int]) -> tuple[float, dict[int, int]]:
    """What all labels cost together, and where each stands once none gains by moving."""
    chosen: dict[int, int] = {}
    for _ in range(ROUNDS):
        before, total = dict(chosen), 0.0
        for k in order:
            others = [(spots[j], choice) for j, choice in chosen.items() if j != k]
            costs = spots[k].costs + sum(_disturbs(spots[k], *other) for other in others)
            chosen[k] = int(np.argmin(costs))
            total += float(costs[chosen[k]])
        if chosen == before:
            break
    return total, chosen


def _size(axes: Any, label: str) -> np.ndarray:
    text = axes.text(0, 0, label, fontsize=9)
    box = text.get_window_extent(axes.figure.canvas.get_renderer())
    text.remove()
    return np.array([box.width, box.height])


def _spots(
    place: np.ndarray, size: np.ndarray, frame: np.ndarray, marks: np.ndarray, specks: np.ndarray
) -> Spots:
    """Boxes all around a place at several distances, pushed into the frame."""
    angles = np.arange(16) * np.pi / 8
    around = np.stack([np.cos(angles), np.sin(angles)], 1)
    centres = np.concatenate([place + around * (distance + size / 2) for distance in DISTANCES])
    centres = np.clip(
        centres, frame[0] + size / 2, np.maximum(frame[1], frame[0] + size) - size / 2
    )
    low, high = centres - size / 2, centres + size / 2
    near = np.clip(place, low, high)
    away = np.hypot(*(near - place).T)
    leaders = place + np.linspace(0, 1, 24)[:, None] * (near - place)[:, None]
    led = away > LEADER
    passed = np.hypot(*np.moveaxis(leaders[:, :, None] - marks, -1, 0)).min(1) < 5  # its own, too
    gaps = np.hypot(*np.moveaxis(np.clip(marks[:, None], low, high) - marks[:, None], -1, 0))
    doubtful = ~led & ((gaps < away + 3).sum(0) > 1)
    costs = (
        away
        + DOUBT * doubtful
        + MARK * _within(marks, low - 4, high + 4)
        + LINE * led * passed.sum(1)
    )
    return Spots(low, high, leaders, led, costs + SPECK * _within(specks, low - 1, high + 1))


def _within(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How many points [..., P, 2] lie in each of the boxes [C, 2]."""
    return ((points > low[:, None]) & (points < high[:, None])).all(-1).sum(-1)


def _disturbs(mine: Spots, other: Spots, choice: int) -> np.ndarray:
    """What each of my spots costs [C] where another label stands at its choice."""
    low, high = other.low[choice : choice + 1], other.high[choice : choice + 1]
    both = np.minimum(mine.high, high) - np.maximum(mine.low, low)
    cost = LABEL * (both > 0).all(1) * (1 + np.maximum(both, 0).prod(1))
    cost += 4 * LINE * mine.led * (_within(mine.leaders, low - 1, high + 1) > 0)
    if other.led[choice]:
        line = other.leaders[choice]
        cost += 4 * LINE * (_within(line, mine.low - 1, mine.high + 1) > 0)
        ends = mine.leaders[:, 0], mine.leaders[:, -1]
        apart = _side(*ends, line[0]) * _side(*ends, line[-1]) < 0
        cost += LINE * mine.led * apart * (
            _side(line[0], line[-1], ends[0]) * _side(line[0], line[-1], ends[1]) < 0
        )  # fmt: skip
    return cost


def _side(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> np.ndarray:
    """On which side of the line from a to b a point lies, by its sign."""
    along, to = b - a, point - a
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]


def _write(axes: Any, label: str, place: Any, at: np.ndarray, spots: Spots, choice: int) -> Any:
    low, high = spots.low[choice], spots.high[choice]
    centre, nearest = (low + high) / 2, (np.clip(at, low, high) - low) / (high - low)
    line = {"arrowstyle": "-", "color": "#666666", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3,
            "relpos": tuple(nearest)}  # fmt: skip
    return axes.annotate(
        label, place, centre - at, textcoords="offset points", ha="center", va="center",
        fontsize=9, zorder=5, arrowprops=line if spots.led[choice] else None,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.3},
    )  # fmt: skip


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, at least `gap` apart, within low to high where all fit."""
    order = np.argsort(wanted, kind="stable")
    blocks: list[list[float]] = []  # what is wanted of the lowest, summed; how many touch
    for k, place in enumerate(np.asarray(wanted, float)[order]):
        blocks.append([place - gap * k, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    firsts = [total / count for total, count in blocks for _ in range(int(count))]
    room = max(high - gap * (len(firsts) - 1), low)
    found = np.empty(len(firsts))
    found[order] = [min(max(first, low), room) + gap * k for k, first in enumerate(firsts)]
    return found.tolist()
