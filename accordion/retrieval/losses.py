"""What the student is trained towards: its own query-document pairs, and the teacher's embeddings."""

from dataclasses import dataclass

import torch
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of, all scalars."""

    total: Tensor
    contrastive: Tensor
    distillation: Tensor


class DistilLoss(nn.Module):
    """L = InfoNCE + weight * distillation, over (batch, dimension) embeddings of length 1.

    InfoNCE (van den Oord et al. 2018, equation 4) on cosine / temperature with in-batch negatives, the mean of
    both directions, query to document and document to query. Distillation is 1 - cosine to the projected teacher
    embedding of the same text, queries and documents alike. Both are sentence-transformers' losses.
    """

    def __init__(self, *, temperature: float, weight: float) -> None:
        super().__init__()
        self.weight = weight
        # Only `compute_loss_from_embeddings` is used, which needs no model.
        self.pairs = MultipleNegativesRankingLoss(
            model=None,  # type: ignore[arg-type]
            scale=1 / temperature,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )
        self.teacher = EmbedDistillLoss(model=None, distance_metric="cosine")  # type: ignore[arg-type]

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> LossParts:
        """Loss of a batch of pairs, row i of the documents being the positive of row i of the queries.

        Args:
            student: [queries (batch, dimension), documents (batch, dimension)].
            teacher: the same of the teacher.
        """
        labels = torch.empty(0)  # unused by the in-batch loss
        contrastive = self.pairs.compute_loss_from_embeddings(student, labels)
        distillation = self.teacher.compute_loss_from_embeddings(student, teacher)
        return LossParts(contrastive + self.weight * distillation, contrastive, distillation)
