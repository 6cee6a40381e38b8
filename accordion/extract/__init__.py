"""Sub-models cut out of an elastic model: exact, self-contained, ordinary models."""

from accordion.extract.family import extract
from accordion.extract.member import extract_member
from accordion.extract.slicing import cut

__all__ = ["cut", "extract", "extract_member"]
