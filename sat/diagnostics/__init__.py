"""Is the measured robustness real? Before training, while it runs, and after the evaluation."""

from sat.diagnostics.alarm import Alarm
from sat.diagnostics.preflight import preflight, warn_of_threat_models
from sat.diagnostics.training import Overfitting, Probe
from sat.diagnostics.verdict import Doubts, doubts, square_alarm

__all__ = [
    "Alarm", "Doubts", "Overfitting", "Probe", "doubts", "preflight", "square_alarm",
    "warn_of_threat_models",
]  # fmt: skip
