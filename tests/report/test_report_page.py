"""The page: complete, escaped, self-contained, and right in a real browser."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from hostile import HOSTILE, hostile_record

from troth.config import parse
from troth.report import write_model_card, write_report
from troth.report.sections import build
from troth.runs.folders import RunFolder, create

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (400, 1200)


def test_every_section_is_there_and_linked(hostile_run: RunFolder) -> None:
    anchors = [s.anchor for s in build([hostile_run])]
    assert anchors == [
        "summary", "gates", "privacy", "quality", "training", "membership", "fairness", "federation", "methods",
        "provenance",
    ]  # fmt: skip
    html = write_report([hostile_run], hostile_run.path / "report.html").read_text(encoding="utf-8")
    for anchor in anchors:
        assert f'href="#{anchor}"' in html and f'id="{anchor}"' in html


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    record = hostile_record()
    bare = type(record)("train", "bare", record.created, "0", record.config, 1, record.measurements[:1])
    folder = create(parse(dict(record.config)), tmp_path)
    folder.write_record(bare)
    assert [s.anchor for s in build([folder])] == ["summary", "quality", "methods", "provenance"]


def test_numbers_stand_with_interval_and_assumptions(hostile_run: RunFolder) -> None:
    html = write_report([hostile_run], hostile_run.path / "report.html").read_text(encoding="utf-8")
    assert "0.9 [0.88, 0.92]" in html
    assert "too few examples for this claim" in html
    for word in ("add_remove", "example", "pld", "poisson", "non-cryptographic", "the released weights"):
        assert word in html
    assert not re.search(r"\b(is|are) (private|safe|fair)\b", html)


def test_csv_behind_every_plot_holds_what_is_drawn(hostile_run: RunFolder) -> None:
    html = write_report([hostile_run], hostile_run.path / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', html)
    assert len(links) == html.count("<svg ") and len(links) >= 8
    tables = [list(csv.DictReader(io.StringIO(unquote(link)))) for link in links]
    assert all(tables)
    assert "mathdefault" not in html
    assert [r["label"] for r in next(t for t in tables if "label" in t[0] and len(t) == 2)] == [HOSTILE, "b"]


def test_a_later_attack_is_shown_instead_of_the_first(hostile_run: RunFolder) -> None:
    from dataclasses import replace

    record = hostile_record("attack")
    newer = replace(record.measurements[2], value=0.77)
    hostile_run.write_record(replace(record, measurements=(newer,), series={}), "attack")
    html = write_report([hostile_run], hostile_run.path / "report.html").read_text(encoding="utf-8")
    assert "0.77 [0.55, 0.65]" in html and "0.6 [0.55, 0.65]" not in html


def test_model_card_never_shows_an_epsilon_alone(hostile_run: RunFolder) -> None:
    text = write_model_card(hostile_record(), hostile_run.model).read_text(encoding="utf-8")
    (line,) = [part for part in text.splitlines() if "7.99" in part]
    index = text.splitlines().index(line)
    following = "\n".join(text.splitlines()[index : index + 3])
    for word in ("delta 1e-05", "unit: example", "add_remove", "covers: the released weights"):
        assert word in following
    assert "<script>" not in text.split("---", 2)[2]


@pytest.fixture
def page(browser: Browser, hostile_run: RunFolder, request: pytest.FixtureRequest) -> Page:
    """The page of the hostile run, opened; what it asked for and complained about is kept on it."""
    path = write_report([hostile_run], hostile_run.path / "report.html")
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    request.addfinalizer(page.close)
    page.heard = []  # type: ignore[attr-defined]
    page.on("console", lambda m: page.heard.append(("console", m.text)))  # type: ignore[attr-defined]
    page.on("pageerror", lambda e: page.heard.append(("error", str(e))))  # type: ignore[attr-defined]
    page.on("dialog", lambda d: (page.heard.append(("dialog", d.message)), d.dismiss()))  # type: ignore[attr-defined]
    page.on("request", lambda r: r.url != path.as_uri() and not r.url.startswith("data:") and page.heard.append(r.url))  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    return page


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
        " getComputedStyle(document.querySelector('svg text')).fill]"
    )
    ink, paper, label = (_luminance(c) for c in colours)
    assert _contrast(ink, paper) >= 7 and _contrast(label, paper) >= 4.5


@pytest.mark.browser
@pytest.mark.parametrize("page", [(1200, "light")], indirect=True)
def test_contents_lead_to_sections_and_the_page_prints(page: Page) -> None:
    for link in page.locator("nav a").all():
        target = page.locator(link.get_attribute("href") or "#none")
        assert target.locator("h2").inner_text() == link.inner_text()
    page.emulate_media(media="print")
    assert page.pdf()[:5] == b"%PDF-"


def _luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
