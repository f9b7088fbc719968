"""A pool of images under attack: one that is decided leaves at once and the next takes its slot.

So the batch stays full until the queue is empty, whatever share of the images falls early.

A round that leads nowhere ends early. Each search says how far a row's best point is from a fall
(`short`), and now and then that is compared with what it was before: if even `patience` times the
pace since then, kept up to the end, would not bring it to 0, the round is over. An ascent keeps its
pace by the step, and is asked every tenth of the round. A `slowing` search gains about as much in
each doubling of its steps, and is asked at each, from 6 % of the round on. On adversarially trained
models nine of ten targets are hopeless after a few steps.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sat.attacks.network import Network
from sat.rng import RowRng

State = dict[str, Tensor]  # of every image in the pool, one row each


class Search(Protocol):
    """An attack as the pool drives it: rows of state, all advanced by one step at a time."""

    rounds: int  # with a target each; an image stands when none felled it
    iterations: int  # of a round
    slowing: bool  # gains by the doubling of its steps, not by the step

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> State:
        """State of new rows, among it their `iteration` (0) and `short` (inf where a search cannot
        say, and then no round ends early); x [B, C, H, W]."""
        ...

    def step(self, network: Network, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Advances `state` in place; returns points [B, C, H, W] of the ball, whether each may be
        misclassified [B], and whether its round is over [B]."""
        ...


@dataclass
class Pool:
    """Images [N] with their labels, targets [N, rounds] and random numbers.

    `left(images, points)` is told of images that fell, with where; with None, of those that stand.
    """

    x: Tensor
    y: Tensor
    targets: Tensor
    rng: RowRng
    left: Callable[[Tensor, Tensor | None], None]
    size: int  # of a batch
    patience: float

    def run(self, search: Search, network: Network, images: list[int]) -> None:
        """Puts `images` through the search's rounds: the first of all of them, then the second.

        Near the end of the queue an image is in several rounds at once, to keep the batch full.
        """
        rounds = min(search.rounds, self.targets.shape[1])
        queue = deque((image, k) for k in range(rounds) for image in images)
        rounds_left = dict.fromkeys(images, rounds)
        state: State = {}
        while state := self._fill(search, network, state, queue, rounds_left):
            points, may_fall, over = search.step(network, state)
            over |= self._hopeless(state, search)
            if not (may_fall | over).any():
                continue
            over |= self._take_fallen(network, state, points, may_fall, rounds_left)
            stand = []
            for image in state["image"][over].tolist():
                if image in rounds_left:
                    rounds_left[image] -= 1
                    stand += [image] if rounds_left[image] == 0 else []
            if stand:
                self.left(torch.tensor(stand), None)
            stay = (~over).nonzero()[:, 0]
            state = {key: rows[stay] for key, rows in state.items()} if len(stay) else {}

    def _fill(
        self, search: Search, network: Network, state: State, queue: deque, rounds_left: dict
    ) -> State:
        """The state with rows for the next in the queue, as many as there is room for."""
        free, coming = self.size - (len(state["y"]) if state else 0), []
        while queue and len(coming) < free:
            if (entry := queue.popleft())[0] in rounds_left:
                coming.append(entry)
        if not coming:
            return state
        images, rounds = torch.tensor(coming).T
        own = {"image": images, "round": rounds, "x": self.x[images.to(self.x.device)]}
        own |= {"y": self.y[images], "target": self.targets[images, rounds]}
        own = {key: rows.to(network.device) for key, rows in own.items()}
        rows = self.rng.rows[images].to(network.device) * 16 + own["round"]
        own |= search.begin(own["x"], own["y"], own["target"], RowRng(self.rng.key, rows))
        own |= {"then": own["iteration"], "short_then": own["short"]}
        own["due"] = own["iteration"] + self._soon(search)
        return {key: torch.cat([state[key], rows]) for key, rows in own.items()} if state else own

    @staticmethod
    def _soon(search: Search) -> int:
        """When a round is first asked."""
        return max(int(search.iterations * (0.06 if search.slowing else 0.1)), 1)

    def _hopeless(self, state: State, search: Search) -> Tensor:
        """Which rows' rounds end here, by the rule above [B]."""
        short, iteration, then = state["short"], state["iteration"], state["then"]
        gain, soon = state["short_then"] - short, self._soon(search)
        asked = due = iteration >= state["due"]
        if search.slowing:
            doublings = torch.log2(iteration / then.clamp(min=1)).clamp_(min=1e-6)
            ahead = gain * torch.log2(search.iterations / iteration.clamp(min=1)) / doublings
            asked, next_due = due & (then >= soon), (2 * iteration).clamp(min=soon)
        else:
            ahead = gain * (search.iterations - iteration) / (iteration - then).clamp(min=1)
            next_due = iteration + soon
        renew = due | state["short_then"].isinf()  # the pace counts from the first value on
        state["then"] = torch.where(renew, iteration, then)
        state["short_then"] = torch.where(renew, short, state["short_then"])
        state["due"] = torch.where(renew, next_due, state["due"])
        return asked & (short > self.patience * ahead)

    def _take_fallen(
        self, network: Network, state: State, points: Tensor, may_fall: Tensor, rounds_left: dict
    ) -> Tensor:
        """Confirms falls in float32, tells `left`, and returns all rows of these images [B]."""
        asked = may_fall.nonzero()[:, 0]
        if len(asked):
            asked = asked[network.falls(points[asked], state["y"][asked])]
        rows = {
            image: row for image, row in torch.stack([state["image"][asked], asked], 1).tolist()
        }
        for image in rows:
            del rounds_left[image]
        if rows:
            self.left(torch.tensor(list(rows)), points[list(rows.values())])
        return torch.isin(state["image"], state["image"][asked])
