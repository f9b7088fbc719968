"""What an alarm is, and when a count is more than noise."""

from dataclasses import dataclass, field
from typing import Any

from sat.statistics import wilson


@dataclass(frozen=True)
class Alarm:
    """A reason to doubt a number: its name, a line on what it means and what to do, and why."""

    name: str
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_json(self, **at: Any) -> dict[str, Any]:
        """Plain JSON; `at` says where, such as the step or the checkpoint."""
        return {"name": self.name, **at, "message": self.message, "numbers": self.numbers}


def beyond(count: int, images: int, share: float) -> bool:
    """Whether `count` of `images` is more than that share, and not by chance: its whole 95 % Wilson
    interval lies above. Of 128 images, 2 are beyond 0.2 %, 4 beyond 1 %, 12 beyond 5 %; a single
    image never is."""
    return count > 1 and wilson(count, images)[0] > share
