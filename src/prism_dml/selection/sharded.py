"""The memory bank of several processes, for sizes that do not fit one device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prism_dml.selection.bank import MemoryBank

_CHUNK = 65_536  # rows of each process gathered at a time: bounds the first one's device memory


class ShardedBank(MemoryBank):
    """A `MemoryBank` of which each of W processes holds every W-th slot; what it says is what the whole one says.

    Slot s is held by process s mod W: there, `embeddings`, `labels` and `index` have ceil(M / W) rows. Class sums,
    counts and centres are whole in every process, and equal bit for bit. All processes make the same calls, with the
    same batches; one that makes none leaves the others waiting. `PRISM` and `MemoryContrastiveLoss` take this bank in
    place of the other. `state_dict` is that of the own part; `gather` gives the whole, and the state of a whole bank
    can be loaded, from which each process takes its part.

    Memory of a process O(M.D / W + C.D). Summed over the processes in a step: B.D float32 and B integers to enqueue a
    batch of B (what it overwrites), B.D float64 and B integers for `own_entries`, B.C numbers for the exact
    similarity, B.D and one for the loss; the time of the last two is O(B.M.D / W). To enqueue waits for the device
    once.

    Args:
        num_classes: number C of classes; labels are in [0, C).
        embedding_dim: number D of an embedding's components.
        size: number M of slots of all processes together, at least W.
        group: the processes; all of them if None.

    Raises:
        ValueError: a size is not positive, or there are fewer slots than processes.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, size: int, group: dist.ProcessGroup | None = None
    ) -> None:
        self._group = group
        self._rank, of = dist.get_rank(group), dist.get_world_size(group)
        if size < of:
            raise ValueError(f"a bank of {size} cannot be shared out over {of} processes")
        super().__init__(num_classes, embedding_dim, -(-size // of))
        self.size, self._of = size, of

    def sum_over_shares(self, tensor: Tensor) -> Tensor:
        """Sum over the processes of what each makes of its part of the memory."""
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=self._group)
        return tensor

    @torch.no_grad()
    def own_entries(self, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number of samples' own entries, those of all processes; see `MemoryBank.own_entries`."""
        sums, counts = super().own_entries(labels, index)
        return self.sum_over_shares(sums), self.sum_over_shares(counts)

    @torch.no_grad()
    def gather(self) -> MemoryBank | None:
        """The whole memory on the CPU, in the first process; None in the others."""
        whole = MemoryBank(self.num_classes, self.embedding_dim, self.size) if self._rank == 0 else None
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        for name in ("embeddings", "labels", "index"):
            rows = getattr(self, name)
            for start in range(0, len(rows), _CHUNK):
                own = rows[start : start + _CHUNK]
                parts = None if whole is None else [torch.empty_like(own) for _ in range(self._of)]
                dist.gather(own, parts, first, self._group)
                if whole is not None and parts is not None:
                    together = torch.stack(parts, dim=1).flatten(0, 1)  # as the slots follow each other
                    places = getattr(whole, name)[start * self._of :][: len(together)]
                    places.copy_(together[: len(places)])
        if whole is not None:
            for name in ("total", "class_sums", "class_counts", "class_lengths", "centres"):
                getattr(whole, name).copy_(getattr(self, name))
            whole._relink()
        return whole

    def resize(self, size: int) -> None:
        """ValueError: rows would have to move between processes; load the state of a whole bank of another size."""
        raise ValueError("a memory that is shared out over processes cannot be resized")

    def _replace(
        self, entries: Tensor, embeddings: Tensor, labels: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        own = self._held(entries)
        gone, evicted = torch.zeros_like(embeddings), torch.zeros_like(labels)
        gone[own], replaced = super()._replace(entries[own], embeddings[own], labels[own], index[own])
        evicted[own] = replaced + 1
        return self.sum_over_shares(gone), self.sum_over_shares(evicted) - 1

    def _held(self, entries: Tensor) -> Tensor:
        return (entries % self.size % self._of == self._rank).nonzero().squeeze(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        rows = state_dict.get(f"{prefix}embeddings")
        if not isinstance(rows, Tensor) or rows.shape != (self.size, self.embedding_dim):
            super()._load_from_state_dict(state_dict, prefix, *rest)  # the state of a part, or an error
            return
        own = dict(state_dict)
        for name in ("embeddings", "labels", "index", "latest", "previous"):
            whole = state_dict[f"{prefix}{name}"]
            part = torch.full_like(getattr(self, name), 0 if name == "embeddings" else -1)
            held = whole[self._rank :: self._of]
            part[: len(held)] = held
            own[f"{prefix}{name}"] = part
        super()._load_from_state_dict(own, prefix, *rest)
        self._relink()  # the whole's chains lead through slots of all processes
