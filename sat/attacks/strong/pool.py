"""A pool of images under attack: one that is decided leaves at once and the next takes its slot.

So the batch stays full until the queue is empty, whatever share of the images falls early.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sat.attacks.strong.network import Network
from sat.draws import Draws

State = dict[str, Tensor]  # of every image in the pool, one row each


class Search(Protocol):
    """An attack as the pool drives it: rows of state, all advanced by one step at a time."""

    rounds: int  # an image that a round left standing queues again for the next

    def begin(self, x: Tensor, y: Tensor, target: Tensor, draws: Draws) -> State:
        """State of new rows, under any names but those of `Pool`; x [B, C, H, W]."""
        ...

    def step(self, network: Network, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Advances `state` in place; returns points [B, C, H, W] of the ball, whether each may be
        misclassified [B], and whether its round is over [B]."""
        ...


class Pool:
    """Images [N], their labels and targets [N, rounds], and the row numbers that seed their noise.

    `left(images, points)` is told of images that fell, with where; with None, of those that stand.
    """

    def __init__(self, x: Tensor, y: Tensor, targets: Tensor, draws: Draws, left: Callable):
        self.x, self.y, self.targets, self.draws, self.left = x, y, targets, draws, left

    def run(self, search: Search, network: Network, images: list[int], size: int) -> None:
        """Puts `images` through the search's rounds, at most `size` at a time."""
        rounds = min(search.rounds, self.targets.shape[1])
        queue = deque((image, 0) for image in images)
        state: State = {}
        while queue or state:
            state = self._fill(search, network, state, queue, size)
            points, may_fall, over = search.step(network, state)
            decided = may_fall | over
            if not decided.any():
                continue
            fell = torch.zeros_like(over)
            asked = may_fall.nonzero()[:, 0]
            if len(asked):
                fell[asked] = network.falls(points[asked], state["y"][asked])
                self.left(state["image"][fell].cpu(), points[fell])
            ended = over & ~fell
            stand = []
            for image, done in torch.stack([state["image"], state["round"]], 1)[ended].tolist():
                if done + 1 < rounds:
                    queue.append((image, done + 1))
                else:
                    stand.append(image)
            if stand:
                self.left(torch.tensor(stand), None)
            stay = (~(fell | ended)).nonzero()[:, 0]
            state = {key: rows[stay] for key, rows in state.items()} if len(stay) else {}

    def _fill(self, search, network, state: State, queue: deque, size: int) -> State:
        """The state with rows for the next in the queue, as many as there is room for."""
        free = size - (len(state["y"]) if state else 0)
        coming = [queue.popleft() for _ in range(min(free, len(queue)))]
        if not coming:
            return state
        images, rounds = torch.tensor(coming).T
        own = {"image": images, "round": rounds, "x": self.x[images.to(self.x.device)]}
        own |= {"y": self.y[images], "target": self.targets[images, rounds]}
        own = {key: rows.to(network.device) for key, rows in own.items()}
        draws = Draws(
            self.draws.key, self.draws.rows[images].to(network.device) * 16 + own["round"]
        )
        own |= search.begin(own["x"], own["y"], own["target"], draws)
        return {key: torch.cat([state[key], rows]) for key, rows in own.items()} if state else own
