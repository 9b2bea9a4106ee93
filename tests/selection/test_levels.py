import pytest
import torch

from prism_dml.selection.levels import (
    DIRECTIONS,
    MOST_DIRECTIONS,
    SAMPLES_EACH,
    leading,
    num_compared,
    side_by_side,
)

WIDTHS = (4, 6, 5)


def levels(count=60, seed=0):
    return torch.rand(count, sum(WIDTHS), generator=torch.Generator().manual_seed(seed)) + 0.1


def similarities(rows):
    return rows @ rows.T


def test_all_numbers_are_equally_wide_and_all_blocks_equally_long():
    given = levels()
    rows = side_by_side(given, WIDTHS)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(60))
    scale = torch.linspace(0.1, 30, sum(WIDTHS))
    torch.testing.assert_close(
        similarities(side_by_side(given * scale + 7, WIDTHS)), similarities(rows), atol=1e-4, rtol=0
    )
    blocks = torch.split((given - given.mean(0)) / given.std(0, correction=0), WIDTHS, dim=1)
    cosines = torch.stack([torch.cosine_similarity(b[:, None], b[None], dim=2) for b in blocks])
    torch.testing.assert_close(similarities(rows), cosines.mean(0), atol=1e-5, rtol=0)


def test_what_was_not_seen_stays_zero_and_does_not_count():
    given = levels()
    holes = torch.cat([torch.zeros(2, given.shape[1]), given])
    rows = side_by_side(holes, WIDTHS)
    assert (rows[:2] == 0).all()
    torch.testing.assert_close(
        similarities(rows[2:]), similarities(side_by_side(given, WIDTHS)), atol=1e-5, rtol=0
    )
    assert (side_by_side(torch.zeros_like(given), WIDTHS) == 0).all()


def test_a_channel_that_is_always_the_same_says_nothing():
    given = levels()
    given[:, 0] = 0.5
    rows = side_by_side(given, WIDTHS)
    assert rows.isfinite().all()
    given[:, 0] = 3.0
    torch.testing.assert_close(
        similarities(side_by_side(given, WIDTHS)), similarities(rows), atol=1e-5, rtol=0
    )


def test_a_channel_that_hardly_varies_says_little():
    """What is left of a number where its mean is taken away in float32 is no difference."""
    given = levels(2000)
    rows = side_by_side(given, WIDTHS)
    given[:, 0] = 37.7
    found = similarities(side_by_side(given, WIDTHS))
    given[:, 0] = 3.0
    torch.testing.assert_close(found, similarities(side_by_side(given, WIDTHS)), atol=0.01, rtol=0)
    assert rows.isfinite().all()


def test_a_channel_that_is_there_once_is_not_all_of_a_sample():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3000) % 10
    given = torch.randn(10, 40, generator=generator)[truth] + 0.5 * torch.randn(3000, 40, generator=generator)
    given[:, 0] = 0
    given[0, 0] = 0.01
    rows = side_by_side(given, (40,))
    own, others = rows[truth == 0][1:] @ rows[0], rows[truth == 1] @ rows[0]
    assert own.mean() > 0.5 and own.mean() > others.max()


def test_many_numbers_are_compared_in_their_leading_directions(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(500, 10, generator=generator)
    given = few @ torch.randn(10, 2 * DIRECTIONS, generator=generator)
    given += 0.01 * torch.randn(given.shape, generator=generator)
    rows = side_by_side(given, (DIRECTIONS, DIRECTIONS))
    assert rows.shape == (500, DIRECTIONS)
    blocks = torch.split((given - given.mean(0)) / given.std(0, correction=0), DIRECTIONS, dim=1)
    cosines = torch.stack([torch.cosine_similarity(b[:, None], b[None], dim=2) for b in blocks])
    torch.testing.assert_close(similarities(rows), cosines.mean(0), atol=0.01, rtol=0)
    monkeypatch.setattr("prism_dml.selection.levels._ENOUGH", 100)  # the directions of a part of the samples
    torch.testing.assert_close(
        similarities(side_by_side(given, (DIRECTIONS, DIRECTIONS))), cosines.mean(0), atol=0.02, rtol=0
    )


def test_what_is_beside_counts_as_it_is():
    given, beside = levels(), 2 * torch.eye(60)[:, :50]
    rows = side_by_side(given, WIDTHS, beside)
    unit = side_by_side(given, WIDTHS)  # three blocks of length 1, as one of length 1
    expected = torch.cat([3**0.5 * unit, beside], dim=1)
    cosines = torch.cosine_similarity(expected[:, None], expected[None], dim=2)
    torch.testing.assert_close(similarities(rows), cosines, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples, numbers", [(60, 15), (300, 15), (300, 512), (20, 512)])
def test_how_many_numbers_are_compared(samples, numbers):
    given = torch.rand(samples, numbers, generator=torch.Generator().manual_seed(0))
    assert side_by_side(given, (numbers,)).shape == (samples, num_compared(samples, numbers))


@pytest.mark.parametrize("samples", [60, 128, 129, 200, 256, 257])
def test_fewer_directions_can_be_asked_for(samples):
    given = torch.rand(samples, 512, generator=torch.Generator().manual_seed(0))
    width = num_compared(samples, 512, 128)
    assert side_by_side(given, (512,), most=128).shape == (samples, width) and width == (
        128 if samples > 128 else 512
    )


def test_many_samples_are_compared_in_more_directions():
    counts = [num_compared(samples, 1152) for samples in (300, 20_000, 50_000, 10**7)]
    assert counts == [DIRECTIONS, DIRECTIONS, 50_000 // SAMPLES_EACH, MOST_DIRECTIONS]
    given = torch.rand(300 * SAMPLES_EACH, 310, generator=torch.Generator().manual_seed(0))
    assert side_by_side(given, (310,)).shape == (len(given), 300)


def test_the_directions_that_matter_most_of_what_was_compared(monkeypatch):
    """As if no more had been compared; of few samples, whose numbers were kept as they are, all."""
    given = torch.randn(100, 40, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 41)
    monkeypatch.setattr("prism_dml.selection.levels.DIRECTIONS", 5)
    fewest = side_by_side(given, (40,))
    monkeypatch.setattr("prism_dml.selection.levels.SAMPLES_EACH", 10)
    rows = side_by_side(given, (40,))
    assert fewest.shape == (100, 5) and rows.shape == (100, 10)
    torch.testing.assert_close(similarities(leading(rows)), similarities(fewest))
    few = side_by_side(given[:4], (40,))
    assert few.shape == (4, 40)
    torch.testing.assert_close(leading(few.half()), few, atol=1e-3, rtol=0)
    assert leading(torch.zeros(6, 10).half()).eq(0).all()


def test_the_directions_that_matter_most_of_numbers_that_were_compared_as_they_are(monkeypatch):
    """Of very many samples all numbers are, in another order: classes that differ in the first ones are told apart."""
    monkeypatch.setattr("prism_dml.selection.levels.DIRECTIONS", 5)
    monkeypatch.setattr("prism_dml.selection.levels.SAMPLES_EACH", 10)
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(600) % 4
    given = 0.1 * torch.randn(600, 40, generator=generator)
    given[:, :4] += torch.nn.functional.one_hot(truth, 4)
    rows = side_by_side(given, (40,))
    wide = (given - given.mean(dim=0)) / given.std(dim=0, correction=0)
    unit = torch.nn.functional.normalize(wide, dim=1)
    torch.testing.assert_close(similarities(rows), similarities(unit), atol=1e-3, rtol=0)
    few = leading(rows)
    assert rows.shape == given.shape and few.shape == (600, 5)
    nearest = similarities(few).fill_diagonal_(-1).argmax(dim=1)
    assert (truth[nearest] == truth).float().mean() > 0.9


@pytest.mark.parametrize("count", [20, 300, 700])
def test_numbers_that_hang_on_others(count):
    """Maps of few pixels have equal quarters, few samples few directions."""
    generator = torch.Generator().manual_seed(0)
    once = torch.rand(count, 100, generator=generator)
    once[:, 7] = 0
    given = once.repeat(1, 4)
    rows = side_by_side(given, (200, 200))
    assert rows.isfinite().all() and rows.shape == (count, 400 if count == 20 else DIRECTIONS)
    torch.testing.assert_close(
        similarities(rows), similarities(side_by_side(once, (100,))), atol=1e-4, rtol=0
    )


def test_directions_are_those_of_samples_in_any_order(monkeypatch):
    """Classes one after the other again and again, as many as the samples that the directions leave out between two."""
    generator = torch.Generator().manual_seed(0)
    centres, truth = torch.randn(10, DIRECTIONS, generator=generator), torch.arange(3000) % 10
    telling = centres[truth] + 0.01 * torch.randn(3000, DIRECTIONS, generator=generator)
    given = torch.cat([telling, torch.randn(3000, DIRECTIONS, generator=generator)], dim=1)
    monkeypatch.setattr("prism_dml.selection.levels._ENOUGH", 300)
    found = similarities(side_by_side(given, (DIRECTIONS, DIRECTIONS))[:200])
    same = truth[:200, None] == truth[:200]
    for one in range(10):
        of_one = (truth[:200, None] == one) & same
        assert found[of_one].mean() > found[(truth[:200, None] == one) & ~same].mean() + 0.4
