"""Goes on with scripts/gpu_plan.txt: `python scripts/gpu_plan.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat.bench.plan import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_suffix(".txt")))
