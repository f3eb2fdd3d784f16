"""The bench is no package and not installed: its folder is put on the path, as `python shared/bench` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
