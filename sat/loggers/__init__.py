"""Where a run tells of itself: trackers, and the screen.

The option `logger` is a list of trackers, `'logger=[tensorboard]'`; without any, `'logger=[]'`, a
run still writes metrics.jsonl.
"""

from sat.loggers.base import About, Logger, Loggers, compared

__all__ = ["About", "Logger", "Loggers", "compared"]
