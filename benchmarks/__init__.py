"""Comparisons by name, each side by side in one process: `python -m benchmarks --list`."""
