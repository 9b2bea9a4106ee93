"""What torch says where memory is short or a decoder was killed."""

import pytest

from prism_dml.training.shortage import explained


@pytest.mark.parametrize(
    "cause", [None, RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")]
)
def test_a_lost_decoder_whose_signal_only_the_cause_knows(cause: Exception | None) -> None:
    error = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    error.__cause__ = cause
    known = explained(error)
    assert isinstance(known, OSError) and ("was killed (Killed)" in str(known)) == (cause is not None)


def test_another_error_is_not_explained() -> None:
    assert explained(RuntimeError("shapes do not fit")) is None
