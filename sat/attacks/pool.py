"""A pool of images under attack: one that is decided leaves at once and the next takes its slot.

So the batch stays full until the queue is empty, whatever share of the images falls early.

A round that leads nowhere ends early, and one that ends near a fall is begun again from another
start (see `sat.attacks.patience`).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sat.attacks.network import Network
from sat.attacks.patience import fields, near
from sat.rng import RowRng

State = dict[str, Tensor]  # of every image in the pool, one row each


class Search(Protocol):
    """An attack as the pool drives it: rows of state, all advanced by one step at a time."""

    @property
    def rounds(self) -> int: ...  # with a target each; an image stands when none felled it
    @property
    def iterations(self) -> int: ...  # of a round

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> State:
        """State of new rows, among it their `iteration` (0) and `short` (inf where a search cannot
        say, and then no round ends early); x [B, C, H, W]."""
        ...

    def step(self, network: Network, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Advances `state` in place; returns points [B, C, H, W] of the ball, whether each may be
        misclassified [B], and whether its round is over [B]."""
        ...

    def hopeless(self, state: State, patience: float) -> Tensor:
        """Which rows' rounds lead nowhere, after a step [B]."""
        ...


@dataclass
class Pool:
    """Images [N] with their labels, targets [N, rounds] and random numbers.

    A target of -1 is none. An image's rounds draw with `spread` times its row, and their number;
    from a further start, as those of further images would.
    `left(images, points, tied)` is told of images that fell, where, and
    which of them by a tie; without points, of those that stand.
    """

    x: Tensor
    y: Tensor
    targets: Tensor
    rng: RowRng
    left: Callable[..., None]
    size: int  # of a batch
    patience: float
    starts: int = 1  # of a round that ends near a fall each time
    spread: int = 16

    def run(self, search: Search, network: Network, images: list[int]) -> None:
        """Puts `images` through the search's rounds: the first of all of them, then the second.

        Near the end of the queue an image is in several rounds at once, to keep the batch full.
        """
        rounds = min(search.rounds, self.targets.shape[1])
        real = self.targets[:, :rounds] >= 0
        queue = deque((image, k, 0) for k in range(rounds) for image in images if real[image, k])
        rounds_left = {image: int(real[image].sum()) for image in images}
        state: State = {}
        while state := self._fill(search, network, state, queue, rounds_left):
            points, may_fall, over = search.step(network, state)
            again = over & near(state) & (state["start"] < self.starts - 1)
            over |= search.hopeless(state, self.patience)
            if not (may_fall | over).any():
                continue
            over |= self._take_fallen(network, state, points, may_fall, rounds_left)
            stand = []
            for image, k, start, more in _entries(state, over, again):
                if image in rounds_left and more:
                    queue.append((image, k, start + 1))
                elif image in rounds_left:
                    rounds_left[image] -= 1
                    stand += [image] if rounds_left[image] == 0 else []
            if stand:
                self.left(torch.tensor(stand))
            stay = (~over).nonzero()[:, 0]
            state = {key: rows[stay] for key, rows in state.items()} if len(stay) else {}

    def _fill(
        self, search: Search, network: Network, state: State, queue: deque, rounds_left: dict
    ) -> State:
        """The state with rows for the next in the queue, as many as there is room for."""
        free = self.size - (len(state["y"]) if state else 0)
        coming: list[Any] = []
        while queue and len(coming) < free:
            if (entry := queue.popleft())[0] in rounds_left:
                coming.append(entry)
        if not coming:
            return state
        images, rounds, starts = torch.tensor(coming).T
        own = {"image": images, "round": rounds, "start": starts}
        own["x"] = self.x[images.to(self.x.device)]
        own |= {"y": self.y[images], "target": self.targets[images, rounds]}
        own = {key: rows.to(network.device) for key, rows in own.items()}
        rows = (self.rng.rows[images] + starts * len(self.x)).to(network.device)
        rows = rows * self.spread + own["round"]
        own |= search.begin(own["x"], own["y"], own["target"], RowRng(self.rng.key, rows))
        own |= fields(own["iteration"], own["short"])
        return {key: torch.cat([state[key], rows]) for key, rows in own.items()} if state else own

    def _take_fallen(
        self, network: Network, state: State, points: Tensor, may_fall: Tensor, rounds_left: dict
    ) -> Tensor:
        """Confirms falls in float32, tells `left`, and returns all rows of these images [B]."""
        asked = may_fall.nonzero()[:, 0]
        tied = torch.zeros_like(may_fall)
        if len(asked):
            verdict = network.falls(points[asked], state["x"][asked], state["y"][asked])
            tied[asked] = verdict.tied
            asked = asked[~verdict.right]
        rows = {
            image: row for image, row in torch.stack([state["image"][asked], asked], 1).tolist()
        }
        for image in rows:
            del rounds_left[image]
        if rows:
            at = list(rows.values())
            self.left(torch.tensor(list(rows)), points[at], tied[at])
        return torch.isin(state["image"], state["image"][asked])


def _entries(state: State, over: Tensor, again: Tensor) -> list[list[int]]:
    """Image, round and start of the rows that are `over` [B], and whether another start is due."""
    told = (state["image"], state["round"], state["start"], again)
    return torch.stack([part.long() for part in told], 1)[over].tolist()
