"""The review page, in a real browser."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prism_dml.audit import make_audit, write_report
from prism_dml.audit import report as report_module
from prism_dml.data import BytesImages, ImageTable, apply_corrections, read_corrections, table_fingerprint

EVIL = "<script>alert(1)</script>"
CURRENT = "document.querySelector('.card[aria-current]')"
NAMES = np.array(["cat", "dog", EVIL, "</script><img src=x onerror=alert(2)>"])


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def audited(count=60, issues_share=0.5, classes=NAMES, reliability=None, mixed=(), unreadable=0, **options):
    """Clusters of samples of which every second one has the next class's label."""
    rng = np.random.default_rng(0)
    truth = np.arange(count) % len(classes)
    is_issue = np.arange(count) < issues_share * count
    given = np.where(is_issue, (truth + 1) % len(classes), truth)
    score = np.where(is_issue, np.linspace(0, 0.4, count), 0.9)
    issues = pd.DataFrame(
        {
            "is_label_issue": is_issue,
            "label_score": score,
            "given_label": classes[given],
            "suggested_label": classes[truth],
            "suggested_score": 1 - score,
            "issue": np.where(is_issue, np.where(np.arange(count) % 5, "wrong label", "outlier"), ""),
        }
    )
    issues.attrs = {"noise_rate": 0.25, "noise_rate_interval": (0.2, 0.3), "ambiguous_classes": mixed}
    files = [png((int(k) * 40 % 256, 90, 160)) for k in truth]
    images = BytesImages([b""] * unreadable + files[unreadable:])
    table = ImageTable.from_names(images, [f"{EVIL}/{i}.png" for i in range(count)], list(classes[given]))
    vectors = rng.normal(size=(len(classes), 16))[truth] + 0.1 * rng.normal(size=(count, 16))
    mark = table_fingerprint(table)
    return make_audit(issues, vectors, table.paths, mark, reliability=reliability, **options), table


@pytest.fixture
def review(page, tmp_path):
    """The page of 30 suspects, open at the review."""
    audit, table = audited()
    page.open(write_report(audit, tmp_path / "audit", EVIL, table))
    page.press("r")
    page.table = table
    return page


def exported(page):
    page.run("document.getElementById('export').click()")
    file = page.downloads / "corrections.json"
    page.wait_file(file)
    corrections = read_corrections(file)
    file.unlink()
    return {item.index: (item.action, item.label) for item in corrections.items}, corrections


def row(page):
    return int(page.run(f"{CURRENT}.dataset.row"))


def test_cards_render(review):
    cards = review.run("[...document.querySelectorAll('.card')].map(card => card.innerText)")
    assert 2 <= len(cards) < 30  # only what is on screen
    assert "suggested" in cards[0] and EVIL in cards[0] and "outlier" in cards[0]
    pictures = "[...document.querySelectorAll('.card[aria-current] [role=img]')]"
    assert (
        review.run(f"{pictures}.length") == 7
    )  # the suspect, three trusted of the given class, three suggested
    assert review.run(f"{pictures}.every(p => p.style.backgroundImage.startsWith('url(\"blob:'))")
    # The sheet behind them can be decoded in the page.
    decoded = "(async () => { const i = new Image(); i.src = PICTURE; await i.decode(); return i.width })()"
    source = f"{pictures}[0].style.backgroundImage.slice(5, -2)"
    assert review.run(decoded.replace("PICTURE", source)) == 8 * 24
    assert review.problems() == []


def test_keys_that_are_held_down_and_keys_of_a_writing_system(review):
    held = {"key": "d", "windowsVirtualKeyCode": ord("D"), "text": "d"}
    review.call("Input.dispatchKeyEvent", type="keyDown", **held)
    for _ in range(4):
        review.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=True, **held)
    review.call("Input.dispatchKeyEvent", type="keyUp", key="d")
    assert row(review) == 1, "one is dropped"
    review.press("l")
    review.type("do")
    enter = "new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, isComposing: true })"
    review.run(f"document.getElementById('chooser-text').dispatchEvent({enter})")
    assert review.run("document.getElementById('chooser').open"), "it ends a word, not the choice"
    review.press("Enter")
    assert exported(review)[0] == {0: ("drop", None), 1: ("relabel", "dog")}


def test_every_key(review):
    assert row(review) == 0
    review.press("a")
    assert row(review) == 1  # on to the next
    review.press("k")
    review.press("d")
    review.press("l")
    review.type("do")
    review.press("Enter")
    review.press("l")
    review.type("wolf")  # no class of that name: a new one
    review.press("Enter")
    suggested = [NAMES[i % 4] for i in range(30)]
    given = [NAMES[(i + 1) % 4] for i in range(30)]
    expected = {0: ("relabel", suggested[0]), 1: ("keep", given[1]), 2: ("drop", None)}
    expected |= {3: ("relabel", "dog"), 4: ("relabel", "wolf")}
    found, corrections = exported(review)
    assert found == expected
    assert apply_corrections(review.table, corrections).new_classes == ["wolf"]
    review.press("u")
    assert row(review) == 4
    assert exported(review)[0] == {i: expected[i] for i in range(4)}
    review.press("ArrowUp")
    review.press("ArrowUp")
    assert row(review) == 2
    review.press("ArrowDown")
    assert row(review) == 3
    review.press("n")
    assert row(review) == 4
    review.press("l")
    review.press("Escape")
    assert not review.run("document.getElementById('chooser').open")
    review.press("?")
    assert review.run("document.getElementById('help').open")
    review.press("Escape")
    review.press("o")
    assert review.run("document.getElementById('review').hidden")
    review.press("a")  # decides nothing where no card is seen
    review.press("e")
    review.wait_file(review.downloads / "corrections.json")
    assert len(read_corrections(review.downloads / "corrections.json").items) == 4
    assert review.problems() == []


def test_buttons_do_the_same_and_progress_is_shown(review):
    for name in ("Accept", "Keep", "Drop"):
        review.run(
            f"[...{CURRENT}.querySelectorAll('button')].find(b => b.innerText.startsWith('{name}')).click()"
        )
    assert [action for action, _ in exported(review)[0].values()] == ["relabel", "keep", "drop"]
    assert review.run("document.getElementById('progress').getAttribute('aria-valuenow')") == "3"
    assert "3 / 30" in review.run("document.getElementById('open-count').textContent")


def test_the_label_given_chosen_again_is_keep(review):
    review.press("l")
    review.type("dog")
    review.press("Enter")
    assert exported(review)[0] == {0: ("keep", "dog")}


def test_state_survives_a_reload(review):
    for key in "akd":
        review.press(key)
    before = exported(review)[0]
    review.reload()
    assert exported(review)[0] == before
    review.press("r")
    assert row(review) == 3  # where one left off
    review.press("u")  # what came before can still be undone
    assert exported(review)[0] == {i: before[i] for i in (0, 1)}


def test_decisions_go_along_to_another_audit_of_the_same_labels(review, tmp_path):
    """Even those of samples that it does not suspect; none is lost, none counted as its own."""
    count = "document.getElementById('open-count').textContent"
    review.press("a")
    for _ in range(15):
        review.press("ArrowDown")
    review.press("d")
    decided, corrections = exported(review)
    assert len(decided) == 2 and corrections.undecided == 28
    audit, table = audited(max_suspects=10)
    review.open(write_report(audit, tmp_path / "audit", "n", table))  # where the first page was
    assert review.run(count) == "1 / 10"
    assert exported(review)[0] == decided
    review.press("r")
    review.press("k")
    more, corrections = exported(review)
    assert {i: more.pop(i) for i in decided} == decided and [action for action, _ in more.values()] == [
        "keep"
    ]
    assert apply_corrections(table, corrections).dropped == 1
    audit, table = audited()
    review.open(write_report(audit, tmp_path / "audit", "n", table))
    assert review.run(count) == "3 / 30"
    audit, table = audited(56)
    review.open(write_report(audit, tmp_path / "others", "n", table))
    assert review.run(count) == "0 / 28"


def test_without_storage_the_page_says_so_and_still_exports(page, tmp_path):
    script = "Storage.prototype.setItem = Storage.prototype.getItem = () => { throw new Error('refused') }"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    audit, table = audited()
    page.open(write_report(audit, tmp_path / "audit", "n", table))
    assert not page.run("document.getElementById('storage-notice').hidden")
    page.press("r")
    page.press("a")
    assert exported(page)[0] == {0: ("relabel", "cat")}


def test_filters(review):
    change = "(id, value) => { const e = document.getElementById(id); e.value = value;"
    change += " e.dispatchEvent(new Event('change')); return document.getElementById('shown').textContent }"
    assert review.run(f"({change})('filter-kind', '1')").startswith("6 of 30")
    assert review.run(f"({change})('filter-kind', '')").startswith("30 of 30")
    review.press("a")
    assert review.run(f"({change})('filter-state', 'open')").startswith("29 of 30")
    review.press("k")
    assert review.run("document.getElementById('shown').textContent").startswith("28 of 30")
    given = review.run("[...document.getElementById('filter-given').options].map(option => option.text)")
    assert given == ["all classes", *sorted(f"{name} ({7 + (name in NAMES[[1, 2]])})" for name in NAMES)]
    assert review.run(f"({change})('filter-state', 'decided')").startswith("2 of 30")


def focused(page):
    return page.run("document.activeElement.id || document.activeElement.dataset.row")


def test_a_choice_by_mouse_gives_the_keys_back(review):
    box = "document.getElementById('filter-kind')"
    review.run(f"{box}.focus()")
    review.run(f"{box}.dispatchEvent(new Event('pointerdown', {{ bubbles: true }}))")
    review.run(f"{box}.value = '2'; {box}.dispatchEvent(new Event('change', {{ bubbles: true }}))")
    assert focused(review) == str(row(review))
    first = row(review)
    review.press("a")
    assert review.run(f"{box}.value") == "2"
    assert exported(review)[0] == {first: ("relabel", NAMES[first % 4])}


def test_a_choice_from_the_open_list_gives_the_keys_back(review):
    review.run("document.getElementById('filter-kind').focus()")
    for key in ("Enter", "ArrowDown", "Enter"):  # open it, choose, take
        review.press(key)
    review.wait("document.activeElement.matches('.card')")
    assert review.run("document.getElementById('filter-kind').value") == "1"


@pytest.mark.parametrize("key", ["Enter", "Escape"])
def test_who_walks_through_a_list_by_arrows_stays_in_it_until_the_end(review, key):
    review.run("document.getElementById('filter-kind').focus()")
    for count in ("6 of 30", "24 of 30"):
        review.press("ArrowDown")
        assert review.run("document.getElementById('shown').textContent").startswith(count)
        assert focused(review) == "filter-kind"
    review.press(key)
    assert focused(review) == str(row(review))
    review.press("d")
    assert list(exported(review)[0].values()) == [("drop", None)]


def test_a_picture_that_cannot_be_read_says_so(page, tmp_path, caplog):
    audit, table = audited(unreadable=3)
    page.open(write_report(audit, tmp_path / "audit", "n", table))
    page.press("r")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"3 of 59 images of the page cannot be read, e.g. '{EVIL}/") and "no bytes" in said
    seen = "[...document.querySelectorAll('.card[data-row=\"0\"] .picture')].map(p => [p.innerText, p.ariaLabel])"
    ((text, label),) = page.run(seen)
    assert text.split("\n") == ["no picture", f"{EVIL}/0.png"] and label == f"no picture: {EVIL}/0.png"
    page.run("document.querySelectorAll('.card')[2].scrollIntoView()")
    page.wait("document.querySelector('.card[data-row=\"3\"] .picture') !== null")
    assert page.run("document.querySelector('.card[data-row=\"3\"] .picture').style.backgroundImage")
    assert page.problems() == []


def test_overview_promises_what_the_review_holds(page, tmp_path):
    audit, table = audited(max_suspects=3, mixed=[(NAMES[0], EVIL)])
    page.open(write_report(audit, tmp_path, "n", table))
    assert "The 3 most suspicious of 30 are shown." in page.run("document.getElementById('lead').textContent")
    mixed = page.run("document.getElementById('ambiguous').innerText")
    assert mixed == f"Classes mixed as if they were one: cat and {EVIL}."
    pairs = page.run("document.querySelectorAll('#pairs button').length")
    ways = page.run("document.querySelectorAll('#pairs button:enabled').length")
    assert (pairs, ways) == (4, 3)
    for way in range(ways):
        page.run(f"document.querySelectorAll('#pairs button:enabled')[{way}].click()")
        assert page.run("document.querySelectorAll('.card').length") == 1
    assert page.problems() == []


def test_names_of_the_data_do_nothing(review):
    review.press("o")
    assert review.run("document.getElementById('name').textContent") == EVIL
    assert review.run("document.querySelectorAll('img, main script, header script').length") == 0
    assert EVIL in review.run("document.getElementById('class-table').innerText")
    review.press("r")
    review.press("l")
    review.type(EVIL)
    review.press("Enter")
    assert EVIL in review.run("document.querySelector('.card .verdict').textContent")
    assert review.problems() == []


def test_page_is_one_file_without_a_network(tmp_path):
    audit, table = audited()
    page = write_report(audit, tmp_path / "audit", EVIL, table)
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    text = page.read_text(encoding="utf-8")
    assert EVIL not in text
    assert text.count("</script>") == text.count("<script")
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text.split("<script>")[0])
    assert "default-src 'none'" in text


def test_overview(page, tmp_path):
    bins = pd.DataFrame({"label_score": [0.1, 0.9], "share_right": [0.2, 0.95], "count": [30, 30]})
    audit, table = audited(reliability=bins, max_suspects=10)
    page.open(write_report(audit, tmp_path, "n", table))
    text = page.run("document.getElementById('overview').innerText")
    assert "25 %" in text and "20.0 % to 30.0 %" in text and "30 look wrong" in text
    assert page.run("document.querySelectorAll('#reliability circle').length") == 2
    first = "[...document.querySelectorAll('#class-rows [role=row]')].map(r => r.firstChild.innerText)"
    page.run("document.querySelector('#class-head button').click()")
    ascending = page.run(first)
    page.run("document.querySelector('#class-head button').click()")
    assert page.run(first) == ascending[::-1]
    page.run("document.querySelector('#class-rows button').click()")
    assert not page.run("document.getElementById('review').hidden")
    assert page.run("document.getElementById('filter-given').value") != ""
    assert "The 10 most suspicious of 30" in page.run("document.getElementById('limit').textContent")
    assert page.run("document.getElementById('ambiguous').hidden")
    assert page.problems() == []


def test_no_suspects_and_no_images(page, tmp_path):
    audit, _ = audited(issues_share=0)
    page.open(write_report(audit, tmp_path, "n"))
    page.press("r")
    page.press("a")
    assert page.run("document.querySelectorAll('.card').length") == 0
    assert not page.run("document.getElementById('nothing').hidden")
    assert page.problems() == []


def test_many_pictures_lie_beside_the_page(page, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "INSIDE", 10)
    audit, table = audited(200)
    for _ in range(2):  # written again, nothing old is left
        file = write_report(audit, tmp_path, "n", table)
    assert sorted(path.name for path in (tmp_path / "report_images").iterdir())[0] == "0000.webp"
    page.open(file)
    page.press("r")
    source = f"{CURRENT}.querySelector('.picture').style.backgroundImage.slice(5, -2)"
    loads = f"(async () => {{ const i = new Image(); i.src = {source}; await i.decode(); return i.width }})()"
    assert page.run(loads) == 8 * 24
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir() if "image" in path.name)


def test_ten_thousand_suspects(page, tmp_path):
    names = np.array([f"class {i}" for i in range(1000)])
    audit, _ = audited(12_000, issues_share=10_000 / 12_000, classes=names)
    file = write_report(audit, tmp_path, "n")
    page.call("Performance.enable", timeDomain="threadTicks")

    def seconds():
        """Until the page is ready; on a busy machine, of the processor's time."""
        page.open(file)
        metrics = {m["name"]: m["value"] for m in page.call("Performance.getMetrics")["metrics"]}
        return min(float(page.run("document.documentElement.dataset.ready")) / 1000, metrics["TaskDuration"])

    assert min(seconds() for _ in range(2)) < 2
    page.press("r")
    assert page.run("document.querySelectorAll('.card').length") < 20
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.wait("document.querySelector('.card[aria-posinset=\"10000\"]') !== null")
    assert page.run("document.querySelectorAll('.card').length") < 20
    milliseconds = "(() => { const t = performance.now(); PRESS; return performance.now() - t })()"
    press = "document.dispatchEvent(new KeyboardEvent('keydown', { key: 'a', bubbles: true }))"
    page.run("document.activeElement.blur()")
    assert min(page.run(milliseconds.replace("PRESS", press)) for _ in range(5)) < 100
    assert page.problems() == []


@pytest.mark.parametrize("width", [320, 360, 400, 700, 800, 1280])
def test_nothing_is_wider_than_the_window(review, width):
    review.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
    )
    for view in "or":
        review.press(view)
        assert review.run("document.documentElement.scrollWidth <= window.innerWidth")
    inside = "[...document.querySelectorAll('.card')].every(card => [...card.querySelectorAll('button, .thumb')].every("
    inside += "e => e.getBoundingClientRect().bottom <= card.getBoundingClientRect().bottom))"
    assert review.run(inside)
    # Of a narrow card they are below the pictures that one decides by.
    gaps = "[...document.querySelectorAll('.card')].flatMap(card => [...card.querySelectorAll('.strip')].map("
    gaps += (
        "e => card.querySelector('.actions').getBoundingClientRect().top - e.getBoundingClientRect().bottom))"
    )
    assert width > 928 or min(review.run(gaps)) >= 0
