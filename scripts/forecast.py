"""What a command line of `sat.run` will cost; `python scripts/forecast.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat.bench.forecast import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
