import base64
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from prism_dml.audit import Picture, Suspect, write_demo_report

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects a page's texts and images, and checks that its tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images, self.links = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def report(tmp_path):
    picture = tmp_path / "p.png"
    Image.new("L", (4, 4), 200).save(picture)
    image = Image.new("L", (32, 32), 10)
    out = write_demo_report(
        tmp_path / "new",
        summary="PRISM closed 92 % of the gap.",
        metrics={"MCL": {"Precision@1": 0.5}, "PRISM": {"Precision@1": 0.81234, "MAP@R": 0.4}},
        pictures=[Picture(picture, 'Scores of "clean" & wrong')],
        suspects=[
            Suspect(image, "<script>alert(1)</script>", "Ж", 0.00123, True),
            Suspect(image, "a", "b", 0.2, False),
            Suspect(image, "c", "d", 0.3),
        ],
        notes={"seed": "0"},
    )
    return out.read_text(encoding="utf-8"), picture


def test_page_needs_no_other_file(report):
    page = Page(report[0])
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(", report[0])
    assert base64.b64decode(page.images[0]["src"].split(",")[1]) == report[1].read_bytes()


def test_page_shows_the_numbers_and_the_suspects(report):
    texts = Page(report[0]).texts
    assert {"0.500", "0.812", "0.400", "–", "PRISM closed 92 % of the gap.", "Ж", "0.00123"} <= set(texts)
    assert texts.count("✓ truly wrong") == texts.count("✗ the label is right") == 1
    assert "The 3 labels that look most wrong" in texts


def test_names_cannot_break_the_page(report):
    page = Page(report[0])
    assert "<script" not in report[0]
    assert "<script>alert(1)</script>" in page.texts
    assert page.images[0]["alt"] == 'Scores of "clean" & wrong'
    assert all(image["alt"] for image in page.images)


def test_page_has_a_dark_side_and_a_language(report):
    assert "prefers-color-scheme: dark" in report[0]
    assert '<html lang="en">' in report[0]


def test_empty_parts_are_left_out(tmp_path):
    text = write_demo_report(tmp_path, summary="s", metrics={}, pictures=[], suspects=[]).read_text("utf-8")
    assert "What happened" not in text
    assert "look most wrong" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
