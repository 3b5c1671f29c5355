"""A browser for this folder's tests, a page that must not report errors, and a sidecar."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.harness.running import StartSidecar
from tests.harness.tools import needed
from tests.heavy.pages.site import Site, start_site

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MILLISECONDS = 30_000
"""For what appears immediately, on a machine that is not too busy."""
_SIZE = ViewportSize(width=1280, height=720)
_REFUSED = "Failed to load resource: the server responded with a status of 4"
"""What the browser says of a page that was refused on purpose; the test looks at the page itself."""


class Tab:
    """A page, and what the browser complained of since somebody looked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._refuse)

    def empty(self) -> None:
        """As a new one would be."""
        self.page.goto("about:blank")
        self.page.set_viewport_size(_SIZE)
        self.page.context.clear_cookies()

    def _note(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def _refuse(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, with a profile of its own; not for longer than these tests, because it runs an event loop.

    Its build without windows takes half the CPU time: the other draws the browser itself, too, for nobody.
    """
    program = needed("chromium", better="chromium-headless-shell")
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(_ARGUMENTS), timeout=3 * PATIENCE_MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """The test's own."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    yield context
    context.close()


@pytest.fixture(scope="package")
def tab(browser: Browser) -> Iterator[Tab]:
    """The one of all tests that need no other: a new one takes as long as four pages."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    yield Tab(context.new_page())
    context.close()


@pytest.fixture
def page(tab: Tab) -> Iterator[Page]:
    """A page that fails its test for an error in the console, a violation of the policy, or a dialog.

    It begins empty and without cookies.
    """
    tab.complaints.clear()
    yield tab.page
    complaints = [said for said in tab.complaints if not said.startswith(_REFUSED)]
    tab.empty()
    assert complaints == []


@pytest.fixture
def site(start_sidecar: StartSidecar) -> Site:
    """A sidecar of the test's own."""
    return start_site(start_sidecar)
