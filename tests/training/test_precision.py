"""What a run computes in on a CPU that is slow at bfloat16."""

import json
import logging
from pathlib import Path

import pytest
import torch

from prism_dml.benchmark.machine import device_name
from prism_dml.training import train
from prism_dml.training.precision import precision_on


def log_of(run: Path) -> str:
    return (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "capability, computed_in", [("AVX2", "32-true"), ("NO AVX", "32-true"), ("AVX512", "bf16-mixed")]
)
def test_mixed_precision_is_taken_where_it_is_faster(
    capability, computed_in, table, settings, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with caplog.at_level(logging.WARNING, logger="prism_dml"):
        for precision in ("32-true", "bf16-mixed"):
            train(table, settings(precision=precision, steps=2), tmp_path / precision)
    said = [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]
    assert len(said) == (computed_in == "32-true")
    equal = log_of(tmp_path / "32-true") == log_of(tmp_path / "bf16-mixed")
    assert equal == (computed_in == "32-true")
    kept = json.loads((tmp_path / "bf16-mixed" / "run.json").read_text())["settings"]
    assert (kept["precision"], kept["computed_in"]) == ("bf16-mixed", computed_in)
    assert ("float32 as bfloat16 is slow" in device_name("cpu", "bf16-mixed")) == (computed_in == "32-true")
    assert "float32" not in device_name("cpu", "32-true")


def test_a_gpu_computes_in_what_was_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert precision_on("cuda", "bf16-mixed") == "bf16-mixed"
