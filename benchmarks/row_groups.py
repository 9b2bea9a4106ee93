"""What does random order cost, and the sweep over row groups? Images read for each one delivered, in a simulated epoch.

    python benchmarks/row_groups.py

12,500 images in row groups of 100, batches of 16 classes x 4; of the row groups in memory, the least recently used
goes. Prints the table of docs/large.md.
"""

import itertools
from collections import OrderedDict

import numpy as np

from prism_dml.data import PKSampler

IMAGES, GROUP = 12_500, 100


def reads(batches: list[np.ndarray], blocks: np.ndarray, room: int) -> float:
    """Images read for each image delivered, with room for so many row groups."""
    held, read, delivered = OrderedDict(), 0, 0
    for batch in batches:
        delivered += len(batch)
        for block in np.unique(
            blocks[batch]
        ).tolist():  # what a batch needs is read together, and then some goes
            read += 0 if block in held else GROUP
            held[block] = None
            held.move_to_end(block)
        while len(held) > room:
            held.popitem(last=False)
    return read / delivered


def main() -> None:
    print("| images of a class | stored | in memory | random order | swept |\n|---|---|---|---|---|")
    blocks = np.arange(IMAGES) // GROUP
    for size, by_class, share in itertools.product((250, 25, 6), (False, True), (0.1, 0.25)):
        labels = np.arange(IMAGES) // size
        if not by_class:
            labels = np.random.default_rng(0).permutation(labels)
        room = round(share * IMAGES / GROUP)
        plain, swept = PKSampler(labels, 16, 4, 0), PKSampler(labels, 16, 4, 0, blocks=blocks)
        costs = [f"{reads(list(sampler.epoch(0)), blocks, room):.2g}" for sampler in (plain, swept)]
        print(
            f"| {size} | {'by class' if by_class else 'in random order'} | {share:.0%} | {' | '.join(costs)} |"
        )


if __name__ == "__main__":
    main()
