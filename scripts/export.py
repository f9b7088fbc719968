"""Gives a run's model to others: `python scripts/export.py outputs/RUN`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat.models.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
