"""A pool of images under attack: one that is decided leaves at once and the next takes its slot.

So the batch stays full until the queue is empty, whatever share of the images falls early.

A round that leads nowhere ends early; what ended near a fall is told, to be tried again (see
`sat.attacks.patience`).
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

    A target of -1 is none. An image's rounds draw with `spread` times its row, and their number.
    `left(images, points, tied)` is told of images that fell, where, and which of them by a tie;
    without points, of those that stand, but not of those that `run` is to give back.
    """

    x: Tensor
    y: Tensor
    targets: Tensor
    rng: RowRng
    left: Callable[..., None]
    size: int  # of a batch
    patience: float
    spread: int = 16
    gives_back: bool = False

    def run(self, search: Search, network: Network, images: list[int]) -> dict[int, list[int]]:
        """Puts `images` through the search's rounds: the first of all of them, then the second.
        Gives those that stand and were near a fall, where asked to, with the targets of the rounds.

        Near the end of the queue an image is in several rounds at once, to keep the batch full.
        """
        rounds = min(search.rounds, self.targets.shape[1])
        real = self.targets[:, :rounds] >= 0
        queue = deque((image, k) for k in range(rounds) for image in images if real[image, k])
        rounds_left = {image: int(real[image].sum()) for image in images}
        state: State = {}
        nearly: dict[int, list[int]] = {}
        while state := self._fill(search, network, state, queue, rounds_left):
            points, may_fall, over = search.step(network, state)
            if self.gives_back and (close := over & near(state)).any():
                both = torch.stack([state["image"], state["target"]], 1)
                for image, target in both[close].tolist():
                    nearly.setdefault(image, []).append(target)
            over |= search.hopeless(state, self.patience)
            if not (may_fall | over).any():
                continue
            over |= self._take_fallen(network, state, points, may_fall, rounds_left)
            stand = []
            for image in state["image"][over].tolist():
                if image in rounds_left:
                    rounds_left[image] -= 1
                    stand += [image] if rounds_left[image] == 0 and image not in nearly else []
            if stand:
                self.left(torch.tensor(stand))
            stay = (~over).nonzero()[:, 0]
            state = {key: rows[stay] for key, rows in state.items()} if len(stay) else {}
        return {image: targets for image, targets in nearly.items() if image in rounds_left}

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
        images, rounds = torch.tensor(coming).T
        own = {"image": images, "round": rounds, "x": self.x[images.to(self.x.device)]}
        own |= {"y": self.y[images], "target": self.targets[images, rounds]}
        own = {key: rows.to(network.device) for key, rows in own.items()}
        rows = self.rng.rows[images].to(network.device) * self.spread + own["round"]
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
