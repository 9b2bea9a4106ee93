import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, ive, logsumexp
from torch import Tensor
from torch.nn.functional import normalize

from prism_dml.selection import MemoryBank, evidence, similarity
from prism_dml.selection.evidence import compare, weigh
from prism_dml.selection.similarity import (
    centre_similarity,
    concentration,
    exact_similarity,
    excess_resultant,
    log_normaliser,
    squared_resultant,
    vmf_parameters,
)

C, D = 6, 16


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def filled_bank(seed: int = 0, entries: int = 50, size: int = 32) -> MemoryBank:
    """Class 4 has no entry, class 3 has one, the bank has wrapped round."""
    generator = torch.Generator().manual_seed(seed)
    bank = MemoryBank(C, D, size)
    directions = unit(generator, C, D)
    labels = torch.tensor([0, 1, 2, 5])[torch.randint(4, (entries,), generator=generator)]
    labels[-1] = 3
    vectors = normalize(directions[labels] + 0.3 * torch.randn(entries, D, generator=generator), dim=1)
    index = torch.randint(20, (entries,), generator=generator)
    for part in range(0, entries, 7):
        rows = slice(part, part + 7)
        bank.enqueue(vectors[rows], labels[rows], index[rows])
    return bank


def members(bank: MemoryBank, k: int, without: int = -1) -> list[Tensor]:
    """Vectors of a class, entry by entry, but for those of one sample."""
    return [
        bank.embeddings[j].double()
        for j in range(bank.size)
        if bank.labels[j] == k and (without < 0 or bank.index[j] != without)
    ]


@pytest.mark.parametrize("size", [1, 8, 32, 100])
def test_centre_equals_exact(size: int) -> None:
    bank = filled_bank(size=size)
    queries = unit(torch.Generator().manual_seed(1), 9, D)
    torch.testing.assert_close(
        centre_similarity(bank, queries), exact_similarity(bank, queries), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("function", [centre_similarity, exact_similarity])
@pytest.mark.parametrize("chunk", [7, 65_536])
def test_mean_cosine_against_loops(function, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_CHUNK", chunk)
    bank = filled_bank()
    queries = unit(torch.Generator().manual_seed(1), 9, D)
    scores = function(bank, queries)
    for i in range(9):
        for k in range(C):
            cosines = [float(queries[i].double() @ v) for v in members(bank, k)]
            expected = sum(cosines) / len(cosines) if cosines else 0.0
            assert scores[i, k].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["centre", "exact"])
def test_leave_one_out_against_loops(kind) -> None:
    bank = filled_bank()
    generator = torch.Generator().manual_seed(2)
    queries, labels = unit(generator, 60, D), torch.randint(C, (60,), generator=generator)
    index = torch.arange(60) % 22 - 1
    scores, present = compare(bank, kind, queries, labels, index)
    removed = 0
    for i in range(60):
        for k in range(C):
            own = int(index[i]) if k == labels[i] else -1
            cosines = [float(queries[i].double() @ v) for v in members(bank, k, own)]
            removed += len(members(bank, k)) - len(cosines)
            assert (present[k] & (scores[i, k] > -math.inf)) == bool(cosines)
            if cosines:
                assert scores[i, k].item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert removed > 20


def log_bessel(v: float, x: float) -> float:
    """log I_v(x): by scipy where it does not underflow, else by the power series, all terms positive."""
    scaled = ive(v, x)
    if scaled > 1e-200:
        return float(math.log(scaled) + x)
    m = np.arange(20_000)
    return float(logsumexp((2 * m + v) * math.log(x / 2) - gammaln(m + 1) - gammaln(m + v + 1)))


def log_normaliser_reference(kappa: float, dim: int) -> float:
    v = dim / 2 - 1
    if kappa == 0:  # the uniform density: 1 / area of the sphere
        return gammaln(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)
    return v * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_bessel(v, kappa)


@pytest.mark.parametrize("dim, error", [(4, 0.02), (8, 2e-4), (32, 2e-7), (128, 1e-7), (512, 1e-7)])
def test_log_normaliser_against_bessel_functions(dim: int, error: float) -> None:
    kappas = [0.0, 1e-6, 1e-3, 0.5, 1.0, 7.0, 60.0, 300.0, 2e3, 1e5, 5e6]
    values = log_normaliser(torch.tensor(kappas, dtype=torch.float64), dim)
    assert values.dtype == torch.float64
    for kappa, value in zip(kappas, values.tolist(), strict=True):
        kappa = float(torch.tensor(kappa))
        assert value == pytest.approx(log_normaliser_reference(kappa, dim), abs=error, rel=1e-12)


def test_log_normaliser_needs_four_dimensions() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        log_normaliser(torch.ones(1), 3)


def vmf_reference(vectors: list[Tensor], query: Tensor, pooled: float) -> float:
    n = len(vectors)
    total = sum(vectors)
    norm = float(total.norm())
    squared = (n * (norm / n) ** 2 - 1 if n > 1 else 0.0) + 2 * pooled
    squared = min(max(squared / (n - 1 + 2), 0), 0.9999)
    kappa = math.sqrt(squared) * (D - squared) / (1 - squared)
    return kappa * float(query.double() @ total) / norm + log_normaliser_reference(kappa, D)


@pytest.mark.parametrize("leave_out", [False, True])
def test_vmf_against_loops(leave_out: bool) -> None:
    bank = filled_bank()
    groups = [members(bank, k) for k in range(C)]
    several = [g for g in groups if len(g) > 1]
    pooled = sum(float(sum(g).norm()) ** 2 / len(g) - 1 for g in several) / sum(len(g) - 1 for g in several)
    generator = torch.Generator().manual_seed(2)
    queries, labels = unit(generator, 40, D), torch.randint(C, (40,), generator=generator)
    index = torch.arange(40) % 20
    scores, present = compare(bank, "vmf", queries, labels, index if leave_out else None)
    for i in range(40):
        for k in range(C):
            own = int(index[i]) if leave_out and k == labels[i] else -1
            group = members(bank, k, own)
            assert (present[k] & (scores[i, k] > -math.inf)) == bool(group)
            if group:
                # D = 16 is below the 32 from which the expansion is exact to 1e-7.
                assert scores[i, k].item() == pytest.approx(
                    vmf_reference(group, queries[i], pooled), abs=3e-4
                )


def test_kappa_of_single_members_is_that_of_the_others() -> None:
    pooled = torch.tensor(0.7, dtype=torch.float64)
    one = torch.tensor([1.0])
    squared = squared_resultant(excess_resultant(one, one), one, pooled)
    assert squared.item() == pytest.approx(0.7)


@pytest.mark.parametrize("dim", [32, 512])
def test_vmf_stays_finite_at_the_extremes(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    same, spread = unit(generator, 1, dim).expand(50, dim), unit(generator, 50, dim)
    for vectors in (same, spread, same[:1]):
        bank = MemoryBank(3, dim, 200)
        bank.enqueue(vectors, torch.zeros(len(vectors), dtype=torch.long))
        bank.enqueue(spread[:1], torch.ones(1, dtype=torch.long))
        scores, present = compare(bank, "vmf", spread[:5], torch.zeros(5, dtype=torch.long), None)
        assert scores[:, present].isfinite().all()
        evidence = weigh(scores, present, torch.tensor([0, 1, 2, 0, 1]))
        assert evidence.log_probability.isfinite().all()


def test_vmf_density_integrates_to_one() -> None:
    """Independent of any formula for the normaliser: a Monte Carlo mean over the sphere."""
    generator = torch.Generator().manual_seed(0)
    points = unit(generator, 200_000, 8)
    direction = unit(generator, 1, 8)
    offset, slope = vmf_parameters(torch.tensor([5.0]), torch.tensor([10]), 1, 8)
    density = offset + slope * (points @ (0.5 * direction).T)
    area = 2 * math.pi**4 / math.gamma(4)
    assert (density.double().exp().mean() * area).item() == pytest.approx(1, abs=0.02)
    assert density.std() > 0.5


def test_concentration_is_banerjees() -> None:
    assert concentration(torch.tensor(0.25), 10).item() == pytest.approx(0.5 * 9.75 / 0.75)


def test_weighing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = filled_bank()
    generator = torch.Generator().manual_seed(2)
    queries, labels = unit(generator, 20, D), torch.randint(C, (20,), generator=generator)
    whole = weigh(*compare(bank, "centre", queries, labels, None), labels)
    monkeypatch.setattr(evidence, "_CACHED", 3 * C)
    parts = weigh(*compare(bank, "centre", queries, labels, None), labels)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_equal_similarities_suggest_the_first_class() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.5], [0.5, 0.5, 0.1], [0.5, 0.5, 0.5]])
    for given in range(3):
        labels = torch.full((3,), given)
        suggested = weigh(scores.clone(), torch.ones(3, dtype=torch.bool), labels).suggested
        assert suggested.tolist() == [1, 0, 0]
