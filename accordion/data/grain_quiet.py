"""Grain, imported without its warning that JAX is absent; nothing here uses JAX."""

from absl import logging

logging.set_verbosity(logging.ERROR)

import grain  # noqa: E402  # after the line above

__all__ = ["grain"]
