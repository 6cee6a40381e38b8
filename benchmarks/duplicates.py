"""The index that finds near copies of texts: memory by the number of texts, and the exponent of its growth.

Texts of 60 random 5-token shingles, each read by a process of its own; no two are alike, so that all are kept.
"""

import math
import subprocess
import sys

from benchmarks.harness import Row, Sheet

REPEATS = 1
SIZES = (10_000, 20_000, 40_000, 80_000, 160_000)

_FILL = """
import sys, time
from pathlib import Path
import numpy as np
from accordion.config.data import DuplicatesConfig
from accordion.data.duplicates import Duplicates

def resident():
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024

count = int(sys.argv[1])
texts, rng = Duplicates(DuplicatesConfig()), np.random.default_rng(0)
before, clock = resident(), time.process_time()
for number in range(count):
    near = texts._near_text(f"help/a/page{number}/de", rng.integers(0, 2**62, 64, dtype=np.uint64))
    assert near is None
print(resident() - before, time.process_time() - clock)
"""


def run(repeats: int, sizes: tuple[int, ...] = SIZES) -> list[Row | Sheet]:
    """Fill an index of each size."""
    found = {}
    for size in sizes:
        done = subprocess.run([sys.executable, "-c", _FILL, str(size)], check=True, capture_output=True, text=True)
        found[size] = tuple(map(float, done.stdout.split()))
    columns = ("megabytes", "bytes a text", "seconds")
    lines = {f"{size:,} texts": (held / 1e6, held / size, seconds) for size, (held, seconds) in found.items()}
    first, last = sizes[0], sizes[-1]
    exponent = math.log(found[last][0] / found[first][0]) / math.log(last / first)
    notes = (f"memory grows with the number of texts to the power of {exponent:.2f}",)
    return [Sheet(title="index of near copies", columns=columns, lines=lines, notes=notes)]
