"""Is the measured robustness real? Before training, while it runs, and after the evaluation."""

from sat.diagnostics.alarm import Alarm
from sat.diagnostics.verdict import Doubts, doubts, square_alarm

__all__ = ["Alarm", "Doubts", "doubts", "square_alarm"]
