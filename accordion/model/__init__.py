"""The elastic multimodal mixture-of-experts: embeddings, attention, experts, heads, sub-models, files.

Shapes: B rows (packed sequences), S positions, H hidden, N = B * S, E experts, K experts of a token,
V text vocabulary, Q audio levels, C audio codebook, d bits of a vision token.
"""

from accordion.model.cache import Cache
from accordion.model.elastic import SubmodelSpec, parameter_counts
from accordion.model.files import load_model, save_model
from accordion.model.losses import Losses
from accordion.model.model import Model

__all__ = ["Cache", "Losses", "Model", "SubmodelSpec", "load_model", "parameter_counts", "save_model"]
