"""The page that explains a decision of the gate."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.problems import Problem
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import TEMPLATES, route_link, sentence
from sidecar.admin.web.key_form import form_of
from sidecar.admin.web.view_models import ExplainResult, Fact, Option
from sidecar.admin.web.view_models import Explanation as View
from sidecar.core.apikey import Secret, looks_secret
from sidecar.core.model import EVERY, Allow, Decision, Route
from sidecar.core.patterns import parse_pattern
from sidecar.core.routing import NEVER_ROUTED, STANDARD_METHODS
from sidecar.gate.explain import Explanation, Line, redacted

_METHODS: Final = tuple(name for name in STANDARD_METHODS if name not in NEVER_ROUTED)
_MONO: Final = frozenset({"request", "path", "or read as", "forwarded as", "header"})


async def show_explain(request: web.Request) -> web.Response:
    """Show the form, filled in from the address. A whole API key in an address is not shown again."""
    method, target, key = (request.query.get(name, "") for name in ("method", "target", "key"))
    view = asked(service_of(request), method=method or "GET", target=target, key=key)
    return request.app[TEMPLATES].page(request, "explain.html", here="explain", view=view)


async def explain(request: web.Request) -> web.Response:
    """Explain the submitted request."""
    view, status = await answered(request)
    return request.app[TEMPLATES].page(request, "explain.html", here="explain", status=status, view=view)


async def answered(request: web.Request) -> tuple[View, int]:
    """The form that was submitted, with its result or its problem, and the status of the page.

    A whole API key is never shown again, not even in the path.
    """
    service, form = service_of(request), await form_of(request)
    method, target, key = (form.get(name, "").strip() for name in ("method", "target", "key"))
    view = asked(service, method=method, target=target, key=key)
    if not (target.startswith("/") and target.isascii() and target.isprintable() and " " not in target):
        problem = "A path begins with / and is printable ASCII, as a client sends it. Write other characters as %XX."
        return replace(view, problem=problem), 422
    try:
        explanation = await _explain(service, method, target, key)
    except Problem as refusal:
        if refusal.status not in (400, 404, 409):
            raise
        problem = "; ".join(flaw.detail for flaw in refusal.errors) or refusal.detail
        return replace(view, problem=sentence(problem)), 422
    return replace(view, result=_result(explanation)), 200


async def _explain(service: AdminService, method: str, target: str, key: str) -> Explanation:
    if looks_secret(key):
        return await service.explain(method, target, secret=Secret(text=key))
    return await service.explain(method, target, key=key or None)


def asked(service: AdminService, *, method: str = "GET", target: str = "", key: str = "") -> View:
    """The form, filled in."""
    return View(
        methods=_methods(service, method),
        target=redacted(service.config, target),
        example=_example(service),
        key="" if looks_secret(key) else key,
    )


def _methods(service: AdminService, chosen: str) -> tuple[Option, ...]:
    named = {method for route in service.config.routes for method in route.methods if method != EVERY}
    return tuple(
        Option(value=name, label=name, chosen=name == chosen) for name in dict.fromkeys([*_METHODS, *sorted(named)])
    )


def _example(service: AdminService) -> str:
    """Return a path that matches a route."""
    routes = (route for route in service.config.routes if not route.policy.public and not route.policy.deny)
    pattern = next((route.pattern for route in routes), "/")
    return example_of(pattern)


def example_of(pattern: str) -> str:
    return "/" + "/".join(parse_pattern(pattern).example("1"))


def _result(explanation: Explanation) -> ExplainResult:
    decision = explanation.decision
    title, summary = _outcome(decision, explanation.status)
    facts = tuple(_facts(explanation.lines, decision.route))
    return ExplainResult(allowed=isinstance(decision, Allow), title=title, summary=summary, facts=facts)


def _outcome(decision: Decision, status: int | None) -> tuple[str, str]:
    where = f" {decision.route.where}" if decision.route and decision.route.where else ""
    by = f" by route {decision.route.name}{where and ' in' + where}" if decision.route else ": no route matches it"
    if isinstance(decision, Allow):
        if status is None:
            name = decision.route.policy.forward.upstream
            title = (
                "Allowed"
                if decision.would_deny is None
                else f"Observed: would be refused: {decision.would_deny.reason}"
            )
            return title, f"It would be forwarded to the upstream{f' {name}' if name else ''}{by}."
        return "Allowed", f"The sidecar itself would respond with {status}{by}."
    return f"Refused: {decision.reason}", f"It would be refused with {status}{by}."


def _facts(lines: Iterable[Line], route: Route | None) -> Iterable[Fact]:
    for line in lines:
        label = line.label.strip()
        link = route_link(route.name) if label == "route" and route is not None else ""
        yield Fact(label=label.capitalize(), value=line.text, link=link, mono=label in _MONO)
