"""One process and two, which share each batch, train the same model."""

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.norm_act import BatchNormAct2d

from prism_dml.training import train
from prism_dml.training.launch import launch


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def several():
    """The module that processes import too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import several

        yield several
    del sys.modules["several"]


# Nine images in a batch, which two processes cannot share evenly.
LONG = {"classes_per_batch": 3, "steps": 50, "noise_rate": "auto", "validate_every": 20}
OPTIONS = {
    "mcl": LONG,
    "float32": {"steps": 12, "lr": 1e-4},
    "soft triple": {"method": "prism-soft-triple", "similarity": "proxy", "cache": "stream", "workers": 1},
    "rejected": {"log_every": 1, "checkpoint_every": 1},
    "refract": {"method": "refract", "noise_rate": "auto", "steps": 32},
    "published": {"backbone": "resnet10t", "steps": 6},
    "frozen": {
        "backbone": "resnet10t",
        "freeze_backbone": True,
        "method": "refract",
        "noise_rate": "auto",
        "steps": 72,  # so many epochs that the features are judged
    },
}


@pytest.fixture(scope="module")
def runs(several, folder: Path, settings, tmp_path_factory: pytest.TempPathFactory):
    """Each run of OPTIONS by one process and by two, in folders "NAME 1" and "NAME 2"; and some that are stopped."""
    root = tmp_path_factory.mktemp("runs")

    published = root / "published.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t").state_dict(), published)

    def job(name: str, devices: int, **more):
        options = {
            "weights": str(published) if name in ("published", "frozen") else None,
            **OPTIONS[name],
            "devices": devices,
            "bank_size": 31,
            "shard_bank": more.pop("shard", False),
        }
        more |= {
            "double": name not in ("float32", "frozen"),
            "all_rejected": (5, 6) if name == "rejected" else (),
        }
        more |= {"half_rejected": (3, 4) if name == "rejected" else ()}
        more |= {"not_finite": (9, 10) if name == "rejected" else ()}
        more.setdefault("out", root / f"{name} {devices}")
        return several.Job(settings(**options), **more)

    two = [job(name, 2) for name in OPTIONS]
    two += [
        job("soft triple", 2, out=root / "stopped", stop_after=5),
        job("soft triple", 2, out=root / "stopped", resume=True),
        job("mcl", 2, out=root / "mcl shared out", shard=True),
        job("rejected", 2, out=root / "rejected shared out", shard=True),
        job("mcl", 2, out=root / "taken up", resume=True, shard=True),
        job("mcl", 2, out=root / "handed on", stop_after=20, shard=True),
    ]
    several.do(folder, job("mcl", 1, out=root / "taken up", stop_after=20))
    answers, norms, start_method = launch(2, several.everything, folder, two)
    assert start_method == multiprocessing.get_start_method(), "it starts decoders as one process does"
    for name in OPTIONS:
        several.do(folder, job(name, 1))
    several.do(folder, job("mcl", 1, out=root / "handed on", resume=True))
    return root, answers, norms


def assert_same_run(one: Path, other: Path, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    states = [load_file(run.with_suffix(".0")) for run in (one, other)]
    for state in states:  # chains that lead to entries which are no more depend on where they were built
        for key in [key for key in state if key.endswith((".latest", ".previous"))]:
            del state[key]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=rtol, atol=atol, equal_nan=True, msg=key)
    judges_by_looks = any(key.endswith(".targets") for key in states[0])
    assert judges_by_looks or all(
        any(part in key for key in states[0]) for part in ("bank.embeddings", "rule")
    )
    for a, b in zip(records(one), records(other), strict=True):
        assert a == pytest.approx(b, rel=10 * rtol, abs=atol)
    samples = [pd.read_parquet(run / "samples.parquet") for run in (one, other)]
    pd.testing.assert_frame_equal(*samples, rtol=10 * rtol, atol=10 * atol)
    models = [load_file(next((run / "model").glob("*.safetensors"))) for run in (one, other)]
    for key, value in models[0].items():
        torch.testing.assert_close(models[1][key], value, rtol=rtol, atol=atol, msg=key)


@pytest.mark.parametrize("name", ["mcl", "soft triple", "rejected", "refract", "published"])
def test_two_processes_train_what_one_does(name: str, runs) -> None:
    """Parameters, memory, thresholds, log and judgement, after 50 steps."""
    root, _, _ = runs
    assert_same_run(root / f"{name} 1", root / f"{name} 2")
    skipped = max(record.get("skipped_steps", 0) for record in records(root / f"{name} 2"))
    assert skipped == (2 if name == "rejected" else 0), "of the NaN of one process all know"


def test_batch_norms_of_published_weights_keep_their_statistics(runs) -> None:
    root, _, _ = runs
    given = load_file(root / "published.safetensors")
    for devices in (1, 2):
        trained = load_file(next((root / f"published {devices}" / "model").glob("*.safetensors")))
        for name in ("bn1.running_mean", "bn1.running_var", "layer4.0.bn2.running_var"):
            assert torch.equal(trained[f"backbone.{name}"], given[name])
        assert not torch.equal(trained["backbone.bn1.weight"], given["bn1.weight"])


@pytest.mark.parametrize("name", ["float32", "frozen"])
def test_in_single_precision_they_differ_by_rounding(name: str, runs) -> None:
    root, _, _ = runs
    assert_same_run(root / f"{name} 1", root / f"{name} 2", rtol=1e-3, atol=1e-4)


def test_what_a_frozen_backbone_sees_is_judged_in_each_process(runs) -> None:
    root, _, _ = runs
    for rank in (0, 1):
        state = load_file((root / "frozen 2").with_suffix(f".{rank}"))
        assert next(value for key, value in state.items() if key.endswith("unlearned")).any()


@pytest.mark.parametrize("name", ["mcl", "rejected"])
def test_a_memory_that_is_shared_out_trains_what_a_whole_one_does(name: str, several, runs) -> None:
    root, _, _ = runs
    assert_same_run(root / f"{name} 1", root / f"{name} shared out")
    parts = [load_file((root / f"{name} shared out").with_suffix(f".{rank}")) for rank in (0, 1)]
    sizes = [len(next(v for k, v in part.items() if k.endswith("bank.embeddings"))) for part in parts]
    assert sizes == [31, 16], "the first has gathered the whole, the second holds its half"


@pytest.mark.parametrize("name", OPTIONS)
def test_each_process_holds_the_same(name: str, runs) -> None:
    root, _, _ = runs
    states = [load_file((root / f"{name} 2").with_suffix(f".{rank}")) for rank in (0, 1)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_steps_with_all_rejected_are_left_out_by_all(runs) -> None:
    root, _, _ = runs
    rejected = {line["step"]: line["rejected"] for line in records(root / "rejected 2") if "rejected" in line}
    assert rejected[5] == rejected[6] == 1 and rejected[7] < 1
    assert 0.5 <= rejected[3] < 1 and 0.5 <= rejected[4] < 1, "one process keeps nothing, the other something"


def test_a_signal_to_one_process_stops_all_and_they_go_on_as_if_it_had_not_come(runs) -> None:
    root, answers, _ = runs
    assert "SIGTERM: stopped after step 5; --resume" in answers[len(OPTIONS)]
    assert files(root / "stopped") == files(root / "soft triple 2")


def test_one_process_goes_on_with_what_two_began_and_two_with_what_one_did(runs) -> None:
    """Two processes that share out the memory."""
    root, answers, _ = runs
    assert_same_run(root / "mcl 1", root / "taken up")
    assert "stopped after step 20" in answers[-1]
    assert_same_run(root / "mcl 1", root / "handed on")
    document = json.loads((root / "handed on" / "run.json").read_text())
    assert document["settings"]["devices"] == 1
    assert json.loads((root / "mcl 2" / "run.json").read_text())["settings"]["devices"] == 2


@pytest.mark.parametrize("count", [5, 1])
def test_batch_norm_over_shares_is_batch_norm_of_the_batch(count: int, several, runs) -> None:
    """With one image, the second process has none."""
    _, _, norms = runs
    images, towards = several.norm_inputs(count)
    for norm, parts in zip(
        (torch.nn.BatchNorm2d(3, momentum=None), BatchNormAct2d(3, affine=False)), norms[count], strict=True
    ):
        norm.double()
        for _ in range(2):
            x = images.clone().requires_grad_()
            norm.zero_grad()
            y = norm(x)
            (y * towards).sum().backward()
        np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), y.detach(), atol=1e-9)
        np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), x.grad, atol=1e-9)
        state = [*(p.grad for p in norm.parameters()), *norm.state_dict().values()]
        for part in parts:
            for got, expected in zip(part[2:], state, strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("shard", [False, True])
def test_two_gpus_train_what_one_does(shard: bool, several, folder: Path, settings, tmp_path: Path) -> None:
    """Over NCCL, in single precision."""
    options = {**OPTIONS["float32"], "accelerator": "cuda", "bank_size": 31, "shard_bank": shard}
    jobs = [
        several.Job(settings(**options, devices=devices), tmp_path / str(devices), double=False)
        for devices in (1, 2)
    ]
    launch(2, several.do_all, folder, jobs[1:])
    several.do(folder, jobs[0])
    assert_same_run(tmp_path / "1", tmp_path / "2", rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        (1, {"devices": 2, "accelerator": "auto"}, "devices is 2, but this machine has 1 GPUs"),
        (0, {"devices": 2, "accelerator": "cuda"}, "accelerator is cuda, but this machine has no GPU"),
        (0, {"devices": 1, "accelerator": "cuda"}, "accelerator is cuda, but this machine has no GPU"),
    ],
)
def test_more_devices_than_there_are(gpus, options, message, folder, settings, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=message):
        train(folder, settings(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_devices_than_were_launched(folder, settings, monkeypatch, tmp_path: Path) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="3 processes were launched on this machine, but devices is 2"):
        train(folder, settings(devices=2), tmp_path / "run")


def test_a_process_that_a_job_system_calls_one_of_one_starts_others(
    folder, settings, monkeypatch, tmp_path
) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    train(folder, settings(devices=2, steps=2), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["devices"] == 2
