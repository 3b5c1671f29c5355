"""From a view to an answer: templates, the frame around each page, and the headers that keep a page to itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sidecar.admin.auth import Admin, Session
from sidecar.admin.middleware import ADMIN
from sidecar.admin.web.view_models import Frame

HERE: Final = Path(__file__).parent
SESSION: Final = web.RequestKey("session", Session)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # With no-referrer a browser would send `Origin: null` with the forms of our own pages.
    "Referrer-Policy": "same-origin",
}


class Templates:
    """The templates of the package. Everything put into one is escaped; a name that is missing is an error."""

    def __init__(self) -> None:
        loader = FileSystemLoader(HERE / "templates")
        self._environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    def bare(self, name: str, *, status: int = 200, **given: Any) -> web.Response:
        """A page without a frame: for those who are not signed in."""
        text = self._environment.get_template(name).render(given)
        return web.Response(text=text, status=status, content_type="text/html", headers=PAGE_HEADERS)

    def page(
        self, request: web.Request, name: str, *, here: str = "keys", status: int = 200, **given: Any
    ) -> web.Response:
        """A page for whoever is signed in. here: the entry of the navigation that it belongs to."""
        return self.bare(name, status=status, frame=frame_of(request, here), **given)


TEMPLATES: Final = web.AppKey("templates", Templates)


def frame_of(request: web.Request, here: str) -> Frame:
    admin, session = request[ADMIN], request.get(SESSION)
    return Frame(
        here=here,
        who=admin.name,
        reach=_reach(admin),
        may_write=admin.may_write,
        proof=session.proof if session is not None else "",
    )


def _reach(admin: Admin) -> str:
    rights = "Read and write" if admin.may_write else "Read only"
    return rights if admin.tenant is None else f"{rights}, tenant {admin.tenant}"
