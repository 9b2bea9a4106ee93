"""A loss for samples whose label is not believed: towards what they resemble, away from the other classes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class PrototypeLoss(nn.Module):
    """Softmax over prototypes, the positive one made of the memory's entries that are most similar to the sample.

    The positive prototype p is the mean of the `support` most similar entries, weighted by a softmax of their cosines.
    The negative ones are the prototypes c_k of all classes that none of these entries belongs to. The loss is
    -log(e^(s (x.p - m)) / (e^(s (x.p - m)) + sum_k e^(s x.c_k))), all of them unit vectors; labels are not used.

    Source: SGPS (Yu et al., IEEE TIP 33, 2024), its prototypes for noisy samples: scale 50, margin 0.1, support 4.
    There the entries come from subgroups of the whole data set's features; here they are neighbours in the memory.
    """

    def __init__(self, scale: float = 50.0, margin: float = 0.1, support: int = 4) -> None:
        """scale: s > 0. margin: m >= 0, taken off the similarity to p. support: >= 1. ValueError outside."""
        super().__init__()
        if not (scale > 0 and margin >= 0 and support >= 1):
            raise ValueError(
                "scale must be above 0, margin at least 0 and support at least 1, "
                f"got {scale}, {margin}, {support}"
            )
        self.scale, self.margin, self.support = scale, margin, support

    def forward(
        self,
        embeddings: Tensor,
        index: Tensor,
        bank_embeddings: Tensor,
        bank_labels: Tensor,
        bank_index: Tensor,
        class_centres: Tensor,
    ) -> Tensor:
        """Mean loss () in float32 over the samples that resemble anything; 0 if there is none.

        Args:
            embeddings: (B, D) of unit length, any float dtype.
            index: (B,) which sample a row is, negative if unknown.
            bank_embeddings: (M, D) of unit length.
            bank_labels: (M,) integers in [0, C), negative for an empty slot.
            bank_index: (M,) the same as index; no sample is compared with its own entries.
            class_centres: (C, D) of any length; a row of zeros is a class without a prototype.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = embeddings.float()
            own = (index[:, None] == bank_index) & (index >= 0)[:, None]
            usable = (bank_labels >= 0) & ~own  # (B, M)
            cosines = (anchors.detach() @ bank_embeddings.T).masked_fill(~usable, -torch.inf)
            nearest, slots = cosines.topk(min(self.support, len(bank_labels)), dim=1)  # (B, K)
            found = nearest > -torch.inf
            known = found[:, 0]  # (B,)
            weights = nearest.masked_fill(~known[:, None], 0.0).softmax(dim=1)  # (B, K)
            positive = normalize((weights[:, :, None] * bank_embeddings[slots]).sum(dim=1), dim=1)  # (B, D)

            prototypes = normalize(class_centres, dim=1)  # (C, D)
            column = torch.where(
                found, bank_labels[slots], len(prototypes)
            )  # what is not found: one too many
            resembled = anchors.new_zeros(len(anchors), len(prototypes) + 1, dtype=torch.bool)
            resembled = resembled.scatter(1, column, True)[:, :-1]  # (B, C)
            absent = (class_centres == 0).all(dim=1)  # (C,)
            negatives = (self.scale * anchors @ prototypes.T).masked_fill(resembled | absent, -torch.inf)
            target = self.scale * ((anchors * positive).sum(dim=1) - self.margin)  # (B,)
            losses = torch.cat([target[:, None], negatives], dim=1).logsumexp(dim=1) - target
            return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)
