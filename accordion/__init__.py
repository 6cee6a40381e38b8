"""Accordion: one elastic mixture-of-experts pre-training run, a family of models, served by Triton."""

import os

# An idle OpenMP thread spins this often before it sleeps (read when torch loads libgomp). The default, 15 times more,
# made small convolutions 2.5 to 50 times slower on two cores with anything else running; none at all makes a training
# step 20 % slower on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"
