import sys

import numpy as np
import pytest
from PIL import Image

from prism_dml.audit import pictures
from prism_dml.audit.pictures import plot_clean_probability, plot_precision, plot_retrieval, plot_training


@pytest.fixture
def drawn(monkeypatch):
    """The texts of every figure that is written."""
    texts = []
    original = pictures._write

    def write(figure, out):
        axes = figure.axes[0]
        legend = axes.get_legend()
        shown = [axes.get_title("left"), axes.get_xlabel(), *(text.get_text() for text in axes.texts)]
        shown += [text.get_text() for text in legend.get_texts()] if legend else []
        texts.extend(shown)
        original(figure, out)

    monkeypatch.setattr(pictures, "_write", write)
    return texts


def is_picture(file):
    with Image.open(file) as image:
        return image.format == "PNG" and min(image.size) > 200 and len(image.convert("L").getcolors()) > 2


def square(colour):
    return Image.new("RGB", (12, 8), colour)


def test_histogram_says_what_the_threshold_does(drawn, tmp_path):
    scores = np.r_[np.full(8, 0.9), np.full(2, 0.1), np.full(6, 0.1), np.full(4, 0.9), np.nan]
    noisy = np.r_[np.zeros(10, bool), np.ones(10, bool), True]
    out = tmp_path / "new" / "p.png"
    plot_clean_probability(scores, noisy, out, threshold=0.5)
    assert is_picture(out)
    assert "60.0% of the wrong and 20.0% of the clean" in drawn[0]
    assert {"label truly clean (10)", "label truly wrong (10)", "threshold"} <= set(drawn)
    assert [path.name for path in out.parent.iterdir()] == ["p.png"]


@pytest.mark.parametrize("noisy", [np.zeros(5, bool), np.ones(5, bool)])
def test_histogram_of_one_kind_and_one_value(noisy, tmp_path):
    plot_clean_probability(np.full(5, 0.3), noisy, tmp_path / "p.png", threshold=0.3)
    assert is_picture(tmp_path / "p.png")


def test_histogram_without_scores():
    with pytest.raises(ValueError, match="no scores"):
        plot_clean_probability([np.nan], [True], None)
    with pytest.raises(ValueError, match="one score is needed"):
        plot_clean_probability([0.1, 0.2], [True], None)


def test_retrieval_marks_each_neighbour(drawn, tmp_path):
    hits = np.array([[True, False, True], [True, True, False]])
    rows = [[square("red")] * 3, [square("blue")] * 3]
    plot_retrieval([square("red"), square("blue").convert("L")], rows, hits, "PRISM", tmp_path / "r.png")
    assert is_picture(tmp_path / "r.png")
    assert drawn[0] == "PRISM\n4 of 6 neighbours show the query's class"
    assert (drawn.count("✓"), drawn.count("✗")) == (4, 2)


def test_retrieval_with_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="1 queries with 2 neighbours"):
        plot_retrieval([square("red")], [[square("red")]], [[True, False]], "", None)
    with pytest.raises(ValueError, match="at least one query"):
        plot_retrieval([], [], np.zeros((0, 5), bool), "", None)


def test_training_draws_the_curves_there_are(drawn, tmp_path):
    steps = np.arange(5)
    plot_training(
        steps, tmp_path / "t.png", purity=steps / 5, noise_rate_estimate=steps / 10, true_noise_rate=0.5
    )
    assert is_picture(tmp_path / "t.png")
    assert set(drawn[2:]) == {"purity: kept labels that are right", "estimated noise rate", "true noise rate"}
    with pytest.raises(ValueError, match="no curves"):
        plot_training(steps, tmp_path / "t.png")


def test_precision_labels_its_bars(drawn, tmp_path):
    plot_precision({"plain": 0.5, "PRISM": 0.98765}, tmp_path / "b.png", {"PRISM": (0.97, 0.99)})
    assert is_picture(tmp_path / "b.png")
    assert {"0.500", "0.988"} <= set(drawn)
    with pytest.raises(ValueError, match="no models"):
        plot_precision({}, tmp_path / "b.png")


def test_the_callers_pyplot_is_left_alone():
    code = "import sys, prism_dml.audit; print('matplotlib.pyplot' in sys.modules)"
    import subprocess

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
