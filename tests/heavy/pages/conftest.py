"""A browser for this folder's tests, a page that must not complain, and a sidecar to look at."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

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
"""For what appears at once, on a machine that is not too busy."""
_REFUSED = "Failed to load resource: the server responded with a status of 4"
"""What the browser says of a page that was refused on purpose; the test looks at the page itself."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, with a profile of its own; not for longer than these tests, because it runs an event loop."""
    program = needed("chromium")
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(_ARGUMENTS), timeout=3 * PATIENCE_MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails its test for an error in the console, a violation of the policy, or a dialog."""
    page, complaints = context.new_page(), list[str]()
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield page
    assert [said for said in complaints if not said.startswith(_REFUSED)] == []


@pytest.fixture
def site(start_sidecar: StartSidecar) -> Site:
    """A sidecar of the test's own."""
    return start_site(start_sidecar)
