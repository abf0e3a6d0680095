"""A finished run with everything the report can show, and texts that try to break out of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile import HOSTILE, finished, hostile_record

from troth.report import write_report
from troth.runs.folders import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def chromium() -> str | None:
    """Where the system's Chromium lies."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium, or a skip with its reason (a failure where TROTH_REQUIRE_BROWSER is set)."""
    path = chromium()
    if path is None:
        if os.environ.get("TROTH_REQUIRE_BROWSER"):
            pytest.fail("no Chromium, and TROTH_REQUIRE_BROWSER is set")
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*arguments, "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures empty, for tests of what stands around them: drawing takes nearly all of a page's time."""
    monkeypatch.setattr("troth.report.drawing.draw", lambda paint, height, salt: "<svg></svg>")


@pytest.fixture
def hostile_run(tmp_path: Path) -> RunFolder:
    """A finished run folder with the hostile record."""
    return _hostile_run(tmp_path)


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the hostile run, all of it drawn."""
    folder = _hostile_run(tmp_path_factory.mktemp("hostile"))
    return write_report([folder], folder.path / "report.html")


def _hostile_run(out: Path) -> RunFolder:
    folder = finished(hostile_record(), out / "runs")
    folder.write_provenance({"versions": {"troth": HOSTILE}, "data": {"train": "00ff" * 16}})
    return folder
