"""What torch says where memory is short or a decoding process was killed, as one line that says what to do."""

from __future__ import annotations

import re

_LOST = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)"
)
_SHORT = re.compile(r"can't allocate memory|out of memory|Caught MemoryError|ALLOC_FAILED")
_FEWER = "if memory is short, fewer workers need less"
_ASKED = re.compile(r"tried to allocate ([\d.,]+ \w+)", re.IGNORECASE)


def explained(error: RuntimeError | MemoryError | ConnectionResetError) -> OSError | MemoryError | None:
    """The same error in one line; None if it is another one. By torch's words: it has kinds for few of them.

    A connection that is lost is one to a process that decodes images: of stores, errors are of another kind.
    """
    text = str(error)
    if isinstance(error, ConnectionResetError):  # it was killed while it sent something
        return OSError(f"a process that decodes images has ended: {_FEWER}")
    if lost := _LOST.search(text):
        # Of one that "exited unexpectedly" the cause may know the signal.
        lost = _LOST.search(str(error.__cause__)) or lost
        how = f"was killed ({lost[1].strip()})" if lost[1] else "has ended"
        return OSError(f"a process that decodes images {how}: {_FEWER}")
    if not _SHORT.search(text):
        return None
    asked = _ASKED.search(text)
    what = f"torch asked for {asked[1]}" if asked else "torch got no more"
    return MemoryError(f"{what}; smaller batches, images, embeddings or banks need less, and fewer workers")
