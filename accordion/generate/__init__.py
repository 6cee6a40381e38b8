"""Generation of text, images, video and speech, from and after any of them, with a key-value cache."""

from accordion.generate.create import Creator
from accordion.generate.sampling import Sampling

__all__ = ["Creator", "Sampling"]
