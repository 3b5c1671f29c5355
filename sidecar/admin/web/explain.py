"""The pages that explain decisions of the gate: one that is asked about, and refusals, found by the request's id."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.problems import Problem, unknown_request
from sidecar.admin.running import PastRefusal
from sidecar.admin.service import AdminService
from sidecar.admin.web.formatting import TEMPLATES, moment, route_link, sentence
from sidecar.admin.web.key_form import form_of
from sidecar.admin.web.stats import explain_link
from sidecar.admin.web.view_models import ExplainResult, Fact, Moment, Option
from sidecar.admin.web.view_models import Explanation as View
from sidecar.core.apikey import Secret, looks_secret
from sidecar.core.model import EVERY, Allow, Decision, Route
from sidecar.core.patterns import parse_pattern
from sidecar.core.routing import NEVER_ROUTED, STANDARD_METHODS
from sidecar.core.units import counted
from sidecar.gate.explain import Explanation, Line, redacted
from sidecar.telemetry.refusals import RefusalFilter

# A decision that is asked about.


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


# Refusals, as they were and as today's configuration decides.


_MONO_THEN: Final = frozenset({"request", "asked", "path", "or read as", "readings", "config"})
_ELSEWHERE: Final = frozenset({"request", "time"})
"""Labels of lines that stand in the heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastDecisionView:
    """A refusal, as it was and as it would be today."""

    title: str
    observed: bool
    """It went on, because its refusal was only observed."""
    moment: Moment
    then: tuple[Fact, ...]
    verdict: str
    otherwise: bool
    now: tuple[Fact, ...]
    explain: str
    """Empty where there is no request to explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsView:
    """All refusals with one request id that are remembered, the newest first."""

    request_id: str
    total: str
    """Empty where there is one."""
    decisions: tuple[PastDecisionView, ...]


async def show_refusals(request: web.Request) -> web.Response:
    """Show every refusal with the id in the address."""
    service, request_id = service_of(request), request.match_info["id"]
    found = service.refusals(RefusalFilter(request_id=request_id))
    if not found:
        raise unknown_request()
    past = await service.past_refusals(found)
    view = RefusalsView(
        request_id=request_id,
        total=_total(len(found), past),
        decisions=tuple(_past_decision(one, service.now) for one in past),
    )
    return request.app[TEMPLATES].page(request, "refusal.html", here="overview", view=view)


def _total(count: int, past: Sequence[PastRefusal]) -> str:
    if count == 1:
        return ""
    shown = "" if len(past) == count else f" Here are the newest {len(past)}."
    return f"{counted(count, 'refusal')} had this id: clients may send the same one again.{shown}"


def _past_decision(past: PastRefusal, now: int) -> PastDecisionView:
    refusal, decision = past.refusal, past.decision
    return PastDecisionView(
        title=f"Observed: would be refused: {refusal.reason}" if refusal.observed else f"Refused: {refusal.reason}",
        observed=refusal.observed,
        moment=moment(refusal.at, now),
        then=tuple(_past_facts(decision.then, key_id=refusal.key_id)),
        verdict=decision.verdict,
        otherwise=decision.otherwise is True,
        now=tuple(_past_facts(decision.now)),
        explain=explain_link(refusal),
    )


def _past_facts(lines: Iterable[Line], *, key_id: str = "") -> Iterator[Fact]:
    """A line without a label goes on with the one before. key_id: whose page the key leads to."""
    current = ""
    for line in lines:
        current = line.label or current
        link = f"/keys/{quote(key_id, safe='')}" if key_id and line.label == "key" else ""
        if current not in _ELSEWHERE:
            yield Fact(label=line.label.capitalize(), value=line.text, link=link, mono=current in _MONO_THEN)
