"""The toy stages lie beside the tests and are imported by name, as Flyte imports tasks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
