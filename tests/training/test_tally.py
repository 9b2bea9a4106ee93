import numpy as np
import pytest
import torch

from prism_dml.training.tally import Tally


def test_against_a_loop() -> None:
    generator = np.random.default_rng(0)
    noisy = generator.random(30) < 0.4
    tally = Tally(30, torch.from_numpy(noisy))
    last: dict[int, bool] = {}
    for _ in range(4):
        losses, kept_all, index_all = [], [], []
        for step in range(3):
            index = generator.permutation(25)[:8]
            kept = (generator.random(8) < 0.6) & (step != 1)
            loss = float(generator.random())
            learned = torch.tensor(loss) if kept.any() else None
            tally.add(learned, torch.from_numpy(kept), torch.from_numpy(index))
            if kept.any():
                losses.append(loss)
            kept_all += kept.tolist()
            index_all += index.tolist()
            last |= dict(zip(index.tolist(), kept.tolist(), strict=True))
        record = tally.take()
        clean = [not noisy[i] for i in index_all]
        both = sum(k and c for k, c in zip(kept_all, clean, strict=True))
        assert record["loss"] == pytest.approx(sum(losses) / len(losses))
        assert record["rejected"] == pytest.approx(kept_all.count(False) / len(kept_all))
        assert record["purity"] == pytest.approx(both / sum(kept_all))
        assert record["clean_recall"] == pytest.approx(both / sum(clean))
    final = tally.final()
    both = sum(kept and not noisy[i] for i, kept in last.items())
    assert final["purity"] == pytest.approx(both / sum(last.values()))
    assert final["clean_recall"] == pytest.approx(both / sum(not noisy[i] for i in last))


def test_what_is_decided_of_all_at_once_counts_for_all() -> None:
    tally = Tally(5, torch.tensor([True, False, False, False, True]))
    tally.add(torch.tensor(2.0), torch.tensor([True, True]), torch.tensor([0, 1]))
    decided = torch.tensor([False, True, False, True, True])
    expected = {"purity": pytest.approx(2 / 3), "clean_recall": pytest.approx(2 / 3)}
    assert tally.take(decided) == {"loss": 2.0, "rejected": pytest.approx(0.4)} | expected
    assert tally.final(decided) == expected and tally.final() == {"purity": 0.5, "clean_recall": 1.0}
    unknown = Tally(5, None)
    assert unknown.take(decided) == {"loss": None, "rejected": pytest.approx(0.4)}
    assert unknown.final(decided) == {}


def test_without_the_truth() -> None:
    tally = Tally(5, None)
    tally.add(torch.tensor(2.0), torch.tensor([True, False]), torch.tensor([0, 3]))
    assert tally.take() == {"loss": 2.0, "rejected": 0.5} and tally.final() == {}


def test_nothing_counted_is_unknown_not_zero() -> None:
    tally = Tally(5, torch.ones(5, dtype=torch.bool))
    assert tally.take() == {"loss": None, "rejected": None, "purity": None, "clean_recall": None}
    tally.add(None, torch.tensor([False, False]), torch.tensor([0, 3]))
    assert tally.take() == {"loss": None, "rejected": 1.0, "purity": None, "clean_recall": None}


def test_the_loss_of_a_step_without_an_update_does_not_count() -> None:
    tally = Tally(5, None)
    tally.add(torch.tensor(1.0), torch.tensor([True]), torch.tensor([0]))
    tally.add(None, torch.tensor([False]), torch.tensor([1]))
    assert tally.take() == {"loss": 1.0, "rejected": 0.5}


def test_a_step_that_learns_from_rejected_samples_only_counts() -> None:
    tally = Tally(5, None)
    tally.add(torch.tensor(3.0), torch.tensor([False, False]), torch.tensor([0, 1]))
    assert tally.take() == {"loss": 3.0, "rejected": 1.0}


def test_counts_and_decisions_are_in_the_state_but_the_truth_is_not() -> None:
    assert set(Tally(5, None).state_dict()) == {"kept", "judged", "counts"}
