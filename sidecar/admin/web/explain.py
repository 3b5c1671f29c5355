"""The page that asks the gate."""

from collections.abc import Iterable
from typing import Final

from aiohttp import web

from sidecar.admin.problems import Refusal
from sidecar.admin.server import desk_of
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import sentence
from sidecar.admin.web.key_form import form_of
from sidecar.admin.web.rendering import TEMPLATES
from sidecar.admin.web.view_models import Explanation as View
from sidecar.admin.web.view_models import Fact, Option, Told
from sidecar.core.apikey import Secret, looks_secret
from sidecar.core.model import EVERY, Allow, Decision
from sidecar.core.routing import NEVER_ROUTED, STANDARD_METHODS, is_param, parse_pattern
from sidecar.gate.explain import Explanation, Line

_METHODS: Final = tuple(name for name in STANDARD_METHODS if name not in NEVER_ROUTED)
_MONO: Final = frozenset({"request", "path", "or read as", "forwarded as", "header"})


async def show_explain(request: web.Request) -> web.Response:
    """The question, empty."""
    return _page(request, desk_of(request), key=request.query.get("key", ""))


async def explain(request: web.Request) -> web.Response:
    """The question and its answer. A whole key that was asked with is not shown again."""
    service, form = desk_of(request), await form_of(request)
    method, target, key = (form.get(name, "").strip() for name in ("method", "target", "key"))
    shown = "" if looks_secret(key) else key
    if not (target.startswith("/") and target.isascii() and target.isprintable() and " " not in target):
        problem = "A path begins with / and is written as it is sent: printable ASCII, other characters as %XX."
        return _page(request, service, method=method, target=target, key=shown, problem=problem, status=422)
    try:
        explanation = await _asked(service, method, target, key)
    except Refusal as refusal:
        if refusal.status not in (400, 404, 409):
            raise
        problem = "; ".join(flaw.detail for flaw in refusal.flaws) or refusal.detail
        said = sentence(problem)
        return _page(request, service, method=method, target=target, key=shown, problem=said, status=422)
    return _page(request, service, method=method, target=target, key=shown, told=_told(explanation))


async def _asked(service: AdminService, method: str, target: str, key: str) -> Explanation:
    if looks_secret(key):
        return await service.explain(method, target, secret=Secret(text=key))
    return await service.explain(method, target, key=key or None)


def _page(
    request: web.Request,
    service: AdminService,
    *,
    method: str = "GET",
    target: str = "",
    key: str = "",
    problem: str = "",
    told: Told | None = None,
    status: int = 200,
) -> web.Response:
    view = View(
        methods=_methods(service, method), target=target, example=_example(service), key=key, problem=problem, told=told
    )
    return request.app[TEMPLATES].page(request, "explain.html", here="explain", status=status, view=view)


def _methods(service: AdminService, chosen: str) -> tuple[Option, ...]:
    named = {method for route in service.config.routes for method in route.methods if method != EVERY}
    return tuple(
        Option(value=name, label=name, chosen=name == chosen) for name in dict.fromkeys([*_METHODS, *sorted(named)])
    )


def _example(service: AdminService) -> str:
    """A path that some route names."""
    pattern = next((route.pattern for route in service.config.routes if not route.policy.public), "/")
    segments = ["1" if is_param(segment) else segment for segment in parse_pattern(pattern).segments]
    return "/" + "/".join(segments)


def _told(explanation: Explanation) -> Told:
    decision = explanation.decision
    title, summary = _outcome(decision, explanation.status)
    facts = tuple(_facts(explanation.lines))
    return Told(allowed=isinstance(decision, Allow), title=title, summary=summary, facts=facts)


def _outcome(decision: Decision, status: int | None) -> tuple[str, str]:
    where = f" {decision.route.where}" if decision.route and decision.route.where else ""
    by = f", by {decision.route.name}{where and ' in' + where}" if decision.route else ": no route names it"
    if isinstance(decision, Allow):
        if status is None:
            return "Allowed", f"It would be forwarded to the upstream{by}."
        return "Allowed", f"The sidecar itself would answer with {status}{by}."
    return f"Refused: {decision.reason}", f"It would be answered with {status}{by}."


def _facts(lines: Iterable[Line]) -> Iterable[Fact]:
    for line in lines:
        label = line.label.strip()
        yield Fact(label=label.capitalize(), value=line.text, mono=label in _MONO)
