"""A memory shared out over three processes against a whole one in each of them; the checks are in shares.py."""

import json
import sys
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import start_processes

with pytest.MonkeyPatch.context() as patch:  # a module that the processes can import too
    patch.syspath_prepend(str(Path(__file__).parent))
    import shares


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What went wrong in each process, by check."""
    folder = tmp_path_factory.mktemp("shares")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        start_processes(shares.check_all, (folder,), shares.PROCESSES, start_method="spawn")
    sys.modules.pop("shares", None)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(shares.PROCESSES)]


@pytest.mark.parametrize("check", shares.CHECKS)
def test_in_three_processes(check: str, failures) -> None:
    for rank, failed in enumerate(failures):
        assert check not in failed, f"process {rank}\n{failed[check]}"
