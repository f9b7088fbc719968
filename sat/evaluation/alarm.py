"""When a count is more than noise: what raises an alarm."""

from sat.rundir.result import Alarm
from sat.statistics import wilson

__all__ = ["Alarm", "beyond"]


def beyond(count: int, images: int, share: float) -> bool:
    """Whether `count` of `images` is more than that share, and not by chance: its whole 95 % Wilson
    interval lies above. Of 128 images, 2 are beyond 0.2 %, 4 beyond 1 %, 12 beyond 5 %; a single
    image never is."""
    return count > 1 and wilson(count, images)[0] > share
