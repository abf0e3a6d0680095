"""A finished run with everything the report can show, and texts that try to break out of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile import HOSTILE, hostile_record

from troth.config import parse
from troth.runs.folders import RunFolder, create

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
def hostile_run(tmp_path: Path) -> RunFolder:
    """A finished run folder with the hostile record and a second record of an attack that ran alone."""
    record = hostile_record()
    folder = create(parse(dict(record.config)), tmp_path / "runs")
    folder.write_record(record)
    folder.write_provenance({"versions": {"troth": HOSTILE}, "data": {"train": "00ff"}})
    return folder
