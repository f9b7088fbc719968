"""`sat-report` for a checkout: python scripts/report.py outputs"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sat.report.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
