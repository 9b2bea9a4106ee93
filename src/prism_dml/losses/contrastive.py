"""Contrastive losses over a batch and over a memory bank, in memory that does not grow with batch x bank."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Columns of the similarity matrix held at once: on a CPU, B x 2048 numbers stay in a core's cache for usual batches;
# an accelerator is quick with a chunk and slow to begin one, and holds so many numbers.
_CHUNK, _NUMBERS = 2048, 1 << 22


def _sum_pairs(
    anchors: Tensor,  # (B, D), the compute dtype
    labels: Tensor,  # (B,)
    index: Tensor | None,  # (B,)
    reference: Tensor,  # (M, D), never saved: the caller may overwrite it before backward
    reference_labels: Tensor,  # (M,)
    reference_index: Tensor | None,  # (M,)
    margin: float,
    sides: int,
) -> tuple[Tensor, Tensor]:
    """Sum of the pair losses of every anchor with every reference row, and its gradient.

    With W = -1 for a pair to pull together, 1 for one to push apart, else 0, the sum is
    sum(W * S) + (number of pulled pairs), and sum(W * S) = sum(anchors * (W @ reference)): the gradient
    with respect to the anchors, W @ reference (B, D), is all that is kept, and the loss follows from it.
    """
    gradient = torch.zeros_like(anchors)  # (B, D)
    pulled = torch.zeros((), dtype=torch.int64, device=anchors.device)
    if index is not None:
        index = index.where(index >= 0, -1)
    columns = _CHUNK if anchors.device.type == "cpu" else max(_CHUNK, _NUMBERS // max(len(anchors), 1))
    with torch.autocast(anchors.device.type, enabled=False):
        for start in range(0, len(reference), columns):
            part = slice(start, start + columns)
            usable = reference_labels[part] >= 0  # (C,)
            rows = reference[part].to(anchors.dtype)  # (C, D)
            # Empty slots may hold anything, NaN too, which 0 * NaN would let through. On the CPU it pays to look first;
            # elsewhere that would wait for the device.
            if anchors.device.type != "cpu" or not usable.all():
                rows = rows.masked_fill(~usable[:, None], 0.0)
            same = labels[:, None] == reference_labels[part]  # (B, C)
            if index is not None and reference_index is not None:
                theirs = reference_index[part]
                usable = usable & (index[:, None] != theirs.where(theirs >= 0, -2))  # what is unknown differs
            pull = same & usable
            push = (anchors @ rows.T > margin) & ~same & usable
            signs = push.view(torch.int8) - pull.view(torch.int8)  # (B, C), W of these columns
            gradient.addmm_(signs.to(anchors.dtype), rows)
            pulled += pull.count_nonzero()
        total = (anchors * gradient).sum() + pulled
    return total, gradient.mul_(sides)


# An operator of its own: torch.compile would unroll the loop over a large bank.
_pair_sum = torch.library.custom_op("prism_dml::pair_sum", _sum_pairs, mutates_args=())


@_pair_sum.register_fake
def _(anchors: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return anchors.new_empty(()), torch.empty_like(anchors)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


@once_differentiable
def _pair_sum_backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return grad_total * gradient, None, None, None, None, None, None, None


_pair_sum.register_autograd(_pair_sum_backward, setup_context=_keep_gradient)


class _SameInAll(torch.autograd.Function):
    """What every process has; its gradient is the sum of what each one's part of the memory gives."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.total = total
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.total(gradient.clone()), None


class _SumOfAll(torch.autograd.Function):
    """The sum over the processes, whose gradient each has whole."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        return total(tensor.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _check(name: str, embeddings: Tensor, labels: Tensor, index: Tensor | None) -> None:
    """Raise ValueError unless embeddings are floats (N, D), labels and index integers (N,)."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} must be floats of shape (N, D), got {embeddings.dtype} {tuple(embeddings.shape)}"
        )
    for what, values in (("labels", labels), ("index", index)):
        if values is not None and (values.shape != embeddings.shape[:1] or values.is_floating_point()):
            raise ValueError(
                f"{what} of {name} must be integers of shape ({len(embeddings)},), "
                f"got {values.dtype} {tuple(values.shape)}"
            )


def _compute_dtype(embeddings: Tensor) -> Tensor:
    """Half precision as float32: sums over thousands of pairs do not fit it."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


class ContrastiveLoss(nn.Module):
    """Contrastive loss on cosine similarity over all pairs of a batch.

    Sum over anchors of [sum over same label of (1 - S) + sum over other labels with S > margin of S],
    divided by the number of anchors. A sample is never its own pair, by position: exact
    duplicates are real pairs.
    Source: XBM (Wang et al., CVPR 2020), released code.
    """

    def __init__(self, margin: float = 0.5) -> None:
        """margin: in [-1, 1); pairs of different labels at or below it are left alone. ValueError outside."""
        super().__init__()
        if not -1.0 <= margin < 1.0:
            raise ValueError(f"margin must be in [-1, 1), got {margin}")
        self.margin = margin

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"margin={self.margin}"

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss () in float32 (float64 for float64); both sides of a pair get gradient; empty batch: 0.

        embeddings: (B, D) of unit length, any float dtype. labels: (B,) integers >= 0.
        ValueError on other shapes.
        """
        _check("embeddings", embeddings, labels, None)
        anchors = _compute_dtype(embeddings)
        position = torch.arange(len(anchors), device=anchors.device)
        # W is symmetric, so what a pair gives to its second side doubles the gradient of the first.
        total: Tensor = _pair_sum(
            anchors, labels, position, anchors.detach(), labels, position, self.margin, 2
        )[0]
        return total / max(len(anchors), 1)


class MemoryContrastiveLoss(ContrastiveLoss):
    """Contrastive loss of a batch plus that of the batch against a memory bank (MCL, XBM).

    L = L_batch + bank_weight * L_bank, each divided by the number of anchors. Time O(B M D), extra memory
    O(B D + 2048 B), on an accelerator up to 4 million pairs: no B x M matrix exists, and nothing of the bank is kept
    for backward.
    Source: XBM (Wang et al., CVPR 2020); PRISM (Liu et al., CVPR 2021).
    """

    def __init__(self, margin: float = 0.5, bank_weight: float = 1.0) -> None:
        """margin: in [-1, 1). bank_weight: >= 0. ValueError outside."""
        super().__init__(margin)
        if not bank_weight >= 0.0:
            raise ValueError(f"bank_weight must not be negative, got {bank_weight}")
        self.bank_weight = bank_weight

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"margin={self.margin}, bank_weight={self.bank_weight}"

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,
        labels: Tensor,
        bank_embeddings: Tensor,
        bank_labels: Tensor,
        index: Tensor | None = None,
        bank_index: Tensor | None = None,
        sum_over_shares: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Loss () in float32 (float64 for float64); the bank gets no gradient; an empty bank adds 0.

        Args:
            embeddings: (B, D) of unit length, any float dtype.
            labels: (B,) integers >= 0.
            bank_embeddings: (M, D) of unit length, any float dtype; may be overwritten before backward.
            bank_labels: (M,) integers, negative for an empty slot.
            index: (B,) which sample a row is, negative if unknown.
            bank_index: (M,) the same of the bank; given both, no sample is paired with its own entries.
            sum_over_shares: sums a tensor over the processes, where each holds a part of the bank and all have the
                same batch; each then has the whole loss and gradient.

        Raises:
            ValueError: other shapes or kinds of numbers.
        """
        loss = super().forward(embeddings, labels)
        _check("embeddings", embeddings, labels, index)
        _check("bank_embeddings", bank_embeddings, bank_labels, bank_index)
        if embeddings.shape[1] != bank_embeddings.shape[1]:
            raise ValueError(
                f"embeddings have {embeddings.shape[1]} dimensions, the bank's {bank_embeddings.shape[1]}"
            )
        anchors = _compute_dtype(embeddings)
        shared = sum_over_shares is not None
        own = _SameInAll.apply(anchors, sum_over_shares) if shared else anchors
        total: Tensor = _pair_sum(
            own, labels, index, bank_embeddings.detach(), bank_labels, bank_index, self.margin, 1
        )[0]
        if shared:
            total = _SumOfAll.apply(total, sum_over_shares)
        return loss + self.bank_weight * (total / max(len(anchors), 1))
