"""First-in-first-out memory of past embeddings with exact class sums."""

from typing import Any

import torch
from torch import Tensor

from prism_dml.selection.exact import ExactModule

_GRID = 2.0**32
"""Class sums are of multiples of its inverse."""


class MemoryBank(ExactModule):
    """FIFO memory of the last `size` embeddings, with the sum and the number of each class's entries.

    Entry number q (counted from the first ever) lies in slot q mod size, so the oldest entries are the ones
    overwritten. Class sums are updated for every entry that comes or goes, and no centre is ever stale. They are sums
    in float64 of multiples of 2^-32, which are exact up to two million entries of a class: no drift, and the same in
    whatever order a device adds up.

    Memory O(size.D + C.D). All state is in buffers, hence in `state_dict`, on any device.

    Args:
        num_classes: number C of classes; labels are in [0, C).
        embedding_dim: number D of an embedding's components.
        size: number M of slots, at least 1.

    Raises:
        ValueError: if a size is not positive.

    Source: XBM (Wang et al., CVPR 2020), sec. 3.2; PRISM (Liu et al., CVPR 2021), sec. 3.2.
    """

    embeddings: Tensor
    labels: Tensor
    index: Tensor
    total: Tensor
    class_sums: Tensor
    class_counts: Tensor
    centres: Tensor
    class_lengths: Tensor
    latest: Tensor
    previous: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, size: int) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("embedding_dim", embedding_dim), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.size, self.num_classes, self.embedding_dim = size, num_classes, embedding_dim
        self._of = 1  # processes that hold a part each, see `ShardedBank`
        self.register_buffer("embeddings", torch.zeros(size, embedding_dim))  # (M, D)
        self.register_buffer("labels", torch.full((size,), -1))  # (M,), -1: empty slot
        self.register_buffer("index", torch.full((size,), -1))  # (M,), -1: sample not known
        self.register_buffer("total", torch.zeros((), dtype=torch.long))  # entries ever enqueued
        self.register_buffer("class_sums", torch.zeros(num_classes, embedding_dim, dtype=torch.float64))
        self.register_buffer("class_counts", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("centres", torch.zeros(num_classes, embedding_dim))  # class_sums / class_counts
        # Lengths of the sums; not in the state, since they follow from it.
        self.register_buffer("class_lengths", torch.zeros(num_classes), persistent=False)
        # The entries of one sample form a chain from the newest to the oldest: `latest` starts it (hashed by
        # sample index), `previous` goes on from each slot. It makes leave-one-out independent of M.
        self.register_buffer("latest", torch.full((size,), -1))  # (M,) entry numbers
        self.register_buffer("previous", torch.full((size,), -1))  # (M,) entry numbers

    def __len__(self) -> int:
        return min(int(self.total), self.size)

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Store a batch, overwriting the oldest entries; O(B.D) time, whatever the bank's size.

        Args:
            embeddings: (B, D) unit vectors; stored detached, in float32. One that is not finite is stored as zeros: it
                would stay in the sum of its class.
            labels: (B,) integers in [0, C).
            index: (B,) non-negative sample numbers, or None if samples are not known.

        Raises:
            ValueError: if shapes or labels do not fit the bank.
        """
        batch = len(embeddings)
        if embeddings.shape != (batch, self.embedding_dim) or labels.shape != (batch,):
            raise ValueError(
                f"expected embeddings (B, {self.embedding_dim}) and labels (B,), "
                f"not {tuple(embeddings.shape)} and {tuple(labels.shape)}"
            )
        if index is not None and index.shape != (batch,):
            raise ValueError(f"expected index ({batch},), not {tuple(index.shape)}")
        check_labels(labels, self.num_classes)
        stored = min(batch, self.size)  # of a batch larger than the bank, only its last entries survive
        embeddings = embeddings[-stored:].detach().to(self.embeddings)
        embeddings = torch.where(embeddings.isfinite().all(dim=1, keepdim=True), embeddings, 0)
        labels = labels[-stored:].to(self.labels)
        index = torch.full_like(labels, -1) if index is None else index[-stored:].to(self.labels)
        entries = self.total + torch.arange(batch - stored, batch, device=labels.device)  # (stored,)

        gone, evicted = self._replace(entries, embeddings, labels, index)
        occupied = evicted >= 0
        touched = torch.cat([evicted.clamp(min=0), labels])
        self.class_sums.index_add_(
            0, touched, torch.cat([-gone, embeddings]).double().mul_(_GRID).round_().div_(_GRID)
        )
        self.class_counts.index_add_(0, touched, torch.cat([-occupied.long(), torch.ones_like(labels)]))
        self.total += batch

        counts = self.class_counts[touched, None]
        sums = self.class_sums[touched]
        self.centres[touched] = (sums / counts.clamp(min=1)).float()
        self.class_lengths[touched] = sums.norm(dim=1).float()

    @torch.no_grad()
    def resize(self, size: int) -> None:
        """Change the number of slots to `size`, at least 1 (else ValueError); the newest entries stay, in order.

        As if no others had ever been enqueued: a larger memory counts as full once it is.
        """
        other = MemoryBank(self.num_classes, self.embedding_dim, size).to(self.labels.device)
        total, stored = int(self.total), min(len(self), size)
        slots = torch.arange(total - stored, total, device=self.labels.device) % self.size
        other.enqueue(self.embeddings[slots], self.labels[slots], self.index[slots])
        self.size = size
        for name, buffer in other.named_buffers():
            setattr(self, name, buffer)

    def sum_over_shares(self, tensor: Tensor) -> Tensor:
        """Sum of what each part of the memory gives; there is only one. See `ShardedBank`."""
        return tensor

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.class_lengths.copy_(self.class_sums.norm(dim=1))

    def _slots(self, entries: Tensor) -> Tensor:
        """Where entries lie, of those that are held here."""
        return entries % self.size // self._of

    def _held(self, entries: Tensor) -> Tensor:
        """Which of the entries are held here: all."""
        return torch.arange(len(entries), device=entries.device)

    def _replace(
        self, entries: Tensor, embeddings: Tensor, labels: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store new entries; the embeddings that they overwrite, (B, D), and the labels, (B,), -1: none."""
        slots = self._slots(entries)
        evicted = self.labels[slots]
        gone = self.embeddings[slots] * (evicted >= 0)[:, None]
        self._link(entries, slots, index)
        self.embeddings[slots] = embeddings
        self.labels[slots] = labels
        self.index[slots] = index
        return gone, evicted

    def _link(self, entries: Tensor, slots: Tensor, index: Tensor) -> None:
        """Put new entries at the head of their samples' chains, in order, duplicates in a batch included."""
        bucket = index.clamp(min=0) % len(self.latest)
        known = index >= 0
        # Sorted by bucket, an entry's predecessor within the batch is its neighbour; the unknown come first.
        ordered, order = torch.where(known, bucket, -1).sort(stable=True)
        within = torch.full_like(entries, -1)
        within[order[1:]] = torch.where(ordered[1:] == ordered[:-1], entries[order[:-1]], -1)
        self.previous[slots] = torch.where(within >= 0, within, self.latest[bucket])
        self.latest.scatter_reduce_(0, bucket, torch.where(known, entries, -1), reduce="amax")

    def _relink(self) -> None:
        """Build all chains anew."""
        total = int(self.total)
        entries = torch.arange(max(total - self.size, 0), total, device=self.index.device)
        entries = entries[self._held(entries)]
        slots = self._slots(entries)
        self.latest.fill_(-1)
        self._link(entries, slots, self.index[slots])

    @torch.no_grad()
    def own_entries(self, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number of the entries that samples themselves have in the bank under the given labels.

        Args:
            labels: (B,) given labels.
            index: (B,) sample numbers; negative: not known.

        Returns:
            (B, D) float64 sums and (B,) counts. O(B.D) time, and one wait for the device, for each entry that a sample
            has in the bank; entries of others count as its own where sample numbers are equal modulo the bank's size,
            which those of 0 to N - 1 hardly are.
        """
        return _walk(  # type: ignore[no-any-return]
            self.embeddings,
            self.labels,
            self.index,
            self.latest,
            self.previous,
            self.total,
            labels,
            index,
            self.size,
            self._of,
        )


# Torch 2.4 reads the types of an operator, not their names: no `from __future__ import annotations` in this file.
@torch.library.custom_op("prism_dml::own_entries", mutates_args=())
def _walk(
    embeddings: Tensor,  # (M, D)
    bank_labels: Tensor,  # (M,)
    bank_index: Tensor,  # (M,)
    latest: Tensor,  # (M,)
    previous: Tensor,  # (M,)
    total: Tensor,  # ()
    labels: Tensor,  # (B,)
    index: Tensor,  # (B,)
    size: int,
    of: int,
) -> tuple[Tensor, Tensor]:
    """`MemoryBank.own_entries`. An operator of its own: how far to walk depends on the data, as no graph can."""
    sums = embeddings.new_zeros(len(index), embeddings.shape[1], dtype=torch.float64)
    counts = torch.zeros_like(labels)
    oldest = (total - size).clamp(min=0)
    entry = latest[index % len(latest)].where(index >= 0, -1)
    alive = entry >= oldest
    while bool(alive.any()):
        slot = entry % size // of  # the link that leads out of the memory is of another sample, or older
        own = alive & (bank_index[slot] == index) & (bank_labels[slot] == labels)
        sums += torch.where(own[:, None], embeddings[slot], 0.0)
        counts += own
        entry = previous[slot].where(alive, -1)
        alive = entry >= oldest
    return sums, counts


@_walk.register_fake
def _(embeddings: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    labels = rest[5]
    sums = embeddings.new_empty(len(labels), embeddings.shape[1], dtype=torch.float64)
    return sums, torch.empty_like(labels)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """ValueError if a label is outside [0, num_classes).

    Only on the CPU: elsewhere the check would wait for the device, whose own indexing reports such a label, as does
    that of a compiled step.
    """
    if torch.compiler.is_compiling() or labels.device.type != "cpu" or not len(labels):
        return
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must be in [0, {num_classes}), not {labels.min()} to {labels.max()}")
