"""When all labels of a run are judged."""

import math

PARTS, FIRST = 32, 2
"""The first look comes after a thirty-second of the run, or after two epochs where that is earlier: of few images,
wrong labels are soon known by heart."""

APART, FEW = 0.5, 2
"""Epochs from one look to the next, at least, and below which a run compares embeddings; and epochs below which it has
one look only, and of few classes with many samples each compares embeddings, too: more would cost too much beside so
little training."""


def plan_looks(epoch: int, steps: int, beforehand: bool) -> tuple[int, list[int]]:
    """Steps of a part of a run, and after how many parts all labels are judged.

    Args:
        epoch: steps in an epoch.
        steps: steps of the run.
        beforehand: whether labels can be judged before anything is learned. A short run does that: what is learned of
            wrong labels by half of it is not unlearned in the rest.
    """
    part = min(math.ceil(steps / PARTS), FIRST * epoch)
    if beforehand and steps < FEW * epoch:
        return part, [0]
    looks: list[int] = []
    for parts in range(1, math.ceil(steps / part)):
        if _is_look(parts) and (not looks or (parts - looks[-1]) * part >= APART * epoch):
            looks.append(parts)
    return part, looks[-1:] if steps < FEW * epoch else looks


def _is_look(parts: int) -> bool:
    """Whether all is judged after so many parts, if not too soon: 1, 2, 3, 4, 6, 8, 12, 16, ...; dense early."""
    return parts in (1, 2, 3) or (parts > 3 and parts % 2 == 0 and _is_look(parts // 2))
