"""Renders view models: templates, the frame of each page, and the security headers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sidecar.admin.auth import Admin, Session
from sidecar.admin.middleware import ADMIN
from sidecar.admin.web.view_models import Frame
from sidecar.config.build.admin import NAME_OF_VARIABLE, VARIABLE

HERE: Final = Path(__file__).parent
SESSION: Final = web.RequestKey("session", Session)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # With no-referrer, a browser sends `Origin: null` with the forms of this site.
    "Referrer-Policy": "same-origin",
}


class Templates:
    """The templates of the package. Every value is escaped, and an undefined name is an error."""

    def __init__(self) -> None:
        loader = FileSystemLoader(HERE / "templates")
        self._environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    def bare(self, name: str, *, status: int = 200, **given: Any) -> web.Response:
        """Render a page without a frame, for users who are not signed in."""
        text = self._environment.get_template(name).render(given)
        return web.Response(text=text, status=status, content_type="text/html", headers=PAGE_HEADERS)

    def page(
        self, request: web.Request, name: str, *, here: str = "keys", status: int = 200, **given: Any
    ) -> web.Response:
        """Render a page for a signed-in user. here: its entry in the navigation."""
        return self.bare(name, status=status, frame=frame_of(request, here), **given)


TEMPLATES: Final = web.AppKey("templates", Templates)


def frame_of(request: web.Request, here: str) -> Frame:
    admin, session = request[ADMIN], request.get(SESSION)
    return Frame(
        here=here,
        who="Environment token" if admin.name == NAME_OF_VARIABLE else admin.name,
        rights=_rights(admin),
        may_write=admin.may_write,
        proof=session.proof if session is not None else "",
    )


def _rights(admin: Admin) -> str:
    rights = "Read and write" if admin.may_write else "Read only"
    if admin.name == NAME_OF_VARIABLE:
        return f"{VARIABLE}: {rights.lower()}"
    return rights if admin.tenant is None else f"{rights}, tenant {admin.tenant}"
