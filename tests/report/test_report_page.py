"""The page: complete, escaped, self-contained, and right in a real browser."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

import pytest
from attacked import attacked
from hostile import HOSTILE, finished, hostile_record, read_aloud

from troth.report import write_report
from troth.report.sections import build
from troth.runs.folders import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (400, 1200)


@pytest.mark.usefixtures("undrawn")
def test_every_section_is_there_and_linked(hostile_run: RunFolder, hostile_page: Path) -> None:
    anchors = [s.anchor for s in build([hostile_run])]
    assert anchors == [
        "summary", "gates", "privacy", "quality", "training", "membership", "fairness", "federation", "methods",
        "provenance",
    ]  # fmt: skip
    html = hostile_page.read_text(encoding="utf-8")
    for anchor in anchors:
        assert f'href="#{anchor}"' in html and f'id="{anchor}"' in html


@pytest.mark.usefixtures("undrawn")
def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    record = hostile_record()
    measured = tuple(m for m in record.measurements if m.name == "test.accuracy")
    bare = type(record)("train", "bare", record.created, "0", record.config, 1, measured)
    assert [s.anchor for s in build([finished(bare, tmp_path)])] == ["summary", "quality", "methods", "provenance"]


def test_numbers_stand_with_interval_and_assumptions(hostile_page: Path) -> None:
    html = hostile_page.read_text(encoding="utf-8")
    text = read_aloud(html)
    assert "test.accuracy unit: fraction 0.9 [0.88, 0.92] n = 700" in text
    assert "0.02 [0, 0.1] n = 9 too few examples for this claim" in text
    for word in ("add_remove", "example", "pld", "poisson", "non-cryptographic", "the released weights"):
        assert word in html
    assert not re.search(r"\b(is|are) (private|safe|fair)\b", html)


def test_csv_behind_every_plot_holds_what_is_drawn(hostile_page: Path) -> None:
    html = hostile_page.read_text(encoding="utf-8")
    links = re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', html)
    assert len(links) == html.count("<svg ") and len(links) == 7
    tables = [list(csv.DictReader(io.StringIO(unquote(link)))) for link in links]
    assert all(tables)
    assert "mathdefault" not in html
    assert [r["label"] for r in next(t for t in tables if "label" in t[0] and len(t) == 2)] == [HOSTILE, "b"]


@pytest.mark.usefixtures("undrawn")
def test_a_later_attack_is_shown_instead_of_the_first(hostile_run: RunFolder) -> None:
    from dataclasses import replace

    record = hostile_record("attack")
    area = record.measurement("attack.membership.loss.auc")
    assert area is not None
    newer = replace(area, value=0.77)
    hostile_run.write_record(replace(record, measurements=(newer,), series={}), "attack")
    text = read_aloud(write_report([hostile_run], hostile_run.path / "report.html").read_text(encoding="utf-8"))
    assert "0.77 [0.55, 0.65]" in text and "0.6 [0.55, 0.65]" not in text


def opened(browser: Browser, path: Path, width: int, scheme: Literal["light", "dark"] = "light") -> Page:
    """The page, opened; what it asked for and complained about is kept on it."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.heard = []  # type: ignore[attr-defined]
    page.on("console", lambda m: page.heard.append(("console", m.text)))  # type: ignore[attr-defined]
    page.on("pageerror", lambda e: page.heard.append(("error", str(e))))  # type: ignore[attr-defined]
    page.on("dialog", lambda d: (page.heard.append(("dialog", d.message)), d.dismiss()))  # type: ignore[attr-defined]
    page.on("request", lambda r: r.url != path.as_uri() and not r.url.startswith("data:") and page.heard.append(r.url))  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    return page


@pytest.fixture
def page(browser: Browser, hostile_page: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page of the hostile run."""
    page = opened(browser, hostile_page, *request.param)
    yield page
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("page", [(w, s) for w in WIDTHS for s in ("light", "dark")], indirect=True)
def test_in_a_browser(page: Page) -> None:
    """No request, no console message, no dialog, no overflow; hostile text is text; ink stands out from paper."""
    page.wait_for_load_state("networkidle")
    assert page.heard == []  # type: ignore[attr-defined]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object, link[rel=stylesheet]').length") == 0
    assert HOSTILE.replace("\u202e", "")[:60] in page.inner_text("body").replace("\u202e", "")
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('svg text')).fill,"
        " ...['td small', '.mark'].map(s => getComputedStyle(document.querySelector(s)).color)]"
    )
    ink, paper, *others = (_luminance(c) for c in colours)
    assert _contrast(ink, paper) >= 7 and all(_contrast(other, paper) >= 4.5 for other in others)


OUT_OF_SIGHT = """() => [...document.querySelectorAll('tbody th, tbody td, dt, dd')].filter(cell => {
  const text = document.createRange();
  text.selectNodeContents(cell);
  const boxes = [cell.getBoundingClientRect(), ...text.getClientRects()].filter(box => box.width > 0);
  return boxes.some(box => box.left < 0 || box.right > window.innerWidth);
}).map(cell => cell.innerText)"""


@pytest.mark.browser
@pytest.mark.parametrize("runs", [1, 8])
@pytest.mark.usefixtures("undrawn")
def test_every_cell_and_its_text_lie_on_the_screen(browser: Browser, tmp_path: Path, runs: int) -> None:
    """No scrolling sideways, on a phone neither: names and values of every table, however many runs and however long
    their names, lie inside of the viewport."""
    folders = [finished(hostile_record(name=f"snips_private-{'x' * 12 * i}"), tmp_path) for i in range(runs)]
    page = opened(browser, write_report(folders, tmp_path / "report.html"), 400)
    assert page.evaluate("document.querySelectorAll('tbody td').length") >= 20
    out_of_sight = {}
    for width in (320, 400, 768, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        out_of_sight[width] = page.evaluate(OUT_OF_SIGHT)
    page.close()
    assert out_of_sight == {320: [], 400: [], 768: [], 1200: []}


@pytest.mark.browser
@pytest.mark.parametrize("runs", [1, 6])
@pytest.mark.usefixtures("undrawn")
def test_every_cell_of_the_attacks_lies_on_the_screen_and_on_paper(browser: Browser, tmp_path: Path, runs: int) -> None:
    """Folds opened: tables of attacks, audits, canaries and settings, of one run and of a sweep."""
    made = [attacked(f"sweep_epsilon-{i}", epsilon=0.5 * 2**i, secret="x") for i in range(runs)]
    page = opened(browser, write_report([finished(m, tmp_path) for m in made], tmp_path / "report.html"), 320)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    out_of_sight = {}
    for width in (320, 768, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        out_of_sight[width] = page.evaluate(OUT_OF_SIGHT)
    page.set_viewport_size({"width": 718, "height": 900})
    page.emulate_media(media="print")
    out_of_sight[0] = page.evaluate(OUT_OF_SIGHT)
    anchors = page.locator("main > section").evaluate_all("sections => sections.map(s => s.id)")
    assert {"membership", "audit", "canaries"} <= set(anchors) and ("theory" in anchors) == (runs > 1)
    page.close()
    assert out_of_sight == {320: [], 768: [], 1200: [], 0: []}


@pytest.mark.browser
@pytest.mark.usefixtures("undrawn")
def test_a_card_on_a_phone_says_name_run_value_interval_n_and_unit(browser: Browser, tmp_path: Path) -> None:
    folders = [finished(hostile_record(name=name), tmp_path) for name in ("plain", "private")]
    page = opened(browser, write_report(folders, tmp_path / "report.html"), 400)
    card = page.locator("#summary tbody tr", has_text="test.accuracy")
    lines = " ".join(card.inner_text().split())
    assert lines == "test.accuracy unit: fraction 0.9 [0.88, 0.92] n = 700 0.9 [0.88, 0.92] n = 700"
    labels = card.locator("td").evaluate_all("cells => cells.map(c => getComputedStyle(c, '::before').content)")
    assert labels == ['"plain"', '"private"']
    name, *values = [b for c in card.locator("th, td").all() if (b := c.bounding_box()) is not None]
    tops = [name["y"], *(v["y"] for v in values)]
    assert tops == sorted(set(tops))  # below each other
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("page", [(1200, "light")], indirect=True)
def test_methods_are_wide_enough_to_read(page: Page) -> None:
    assert page.locator(".method").count() == 5
    for method in page.locator(".method").all():
        box = method.bounding_box()
        assert box is not None and box["width"] > 800 and box["height"] < 300
    for value in page.locator(".method dd").all():
        box = value.bounding_box()
        assert box is not None and box["width"] > 120


@pytest.mark.browser
@pytest.mark.parametrize("page", [(1200, "light")], indirect=True)
def test_contents_lead_to_sections(page: Page) -> None:
    for link in page.locator("nav a").all():
        target = page.locator(link.get_attribute("href") or "#none")
        assert target.locator("h2").inner_text() == link.inner_text()


@pytest.mark.browser
@pytest.mark.usefixtures("undrawn")
def test_the_page_prints_on_a4_with_its_tables_as_tables(browser: Browser, tmp_path: Path) -> None:
    folders = [finished(hostile_record(name=name), tmp_path) for name in ("plain", "private", "federated")]
    page = opened(
        browser, write_report(folders, tmp_path / "report.html"), 718
    )  # A4 less Chromium's margins, in CSS pixels
    page.emulate_media(media="print")
    assert page.evaluate(OUT_OF_SIGHT) == []
    assert page.evaluate("getComputedStyle(document.querySelector('#summary tr')).display") == "table-row"
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.close()


def _luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
