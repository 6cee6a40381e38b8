"""Accordion: one elastic mixture-of-experts pre-training run, a family of models, served by Triton."""

import os

# Idle OpenMP threads sleep instead of spinning (read when torch loads libgomp). On two cores with anything else
# running, spinning made small convolutions 2.5 times slower, and up to fifty times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
