"""Chromium for tests of the page: Debian's, driven by Playwright; skipped where it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.clients.node import FOLDER

SCREENSHOTS = os.environ.get("SANA_SCREENSHOTS")
"""A folder for pictures of the walk through the page."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    binary = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page and what it did beside its work.

    Args:
        complaints: errors of scripts and of the content security policy.
        hosts: that were asked for anything.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def shoot(self, name: str) -> None:
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


@contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """The page, in a browser that was never there before."""
    context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    seen = Visit(page)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda message: seen.complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: seen.hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
    page.goto(url)
    page.wait_for_load_state("networkidle")
    yield seen
    context.close()


def serious_faults(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical: rule and element."""
    script = FOLDER / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip("axe-core is not installed (make browser-tools)")
    # evaluated by the debugger, which the page's content security policy does not bind
    page.evaluate(script.read_text())
    found = page.evaluate("async () => (await axe.run(document)).violations")
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"]
    ]
