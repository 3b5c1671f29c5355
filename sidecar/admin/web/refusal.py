"""The page of a refusal: the decision as it was, and today's decision. Found by the request id."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from aiohttp import web

from sidecar.admin.api.routes import service_of
from sidecar.admin.problems import unknown_request
from sidecar.admin.running import PastRefusal
from sidecar.admin.web.formatting import TEMPLATES, moment
from sidecar.admin.web.stats import explain_link
from sidecar.admin.web.view_models import Fact, Moment
from sidecar.core.units import counted
from sidecar.gate.explain import Line
from sidecar.telemetry.refusals import RefusalFilter

_MONO: Final = frozenset({"request", "asked", "path", "or read as", "readings", "config"})
_ELSEWHERE: Final = frozenset({"request", "time"})
"""Labels of lines that are in the heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastDecisionView:
    """A refusal, as it was and as it would be today."""

    title: str
    observed: bool
    """Whether it passed because its refusal was only observed."""
    moment: Moment
    then: tuple[Fact, ...]
    verdict: str
    otherwise: bool
    now: tuple[Fact, ...]
    explain: str
    """Empty if there is no request to explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsView:
    """All remembered refusals with one request id, the newest first."""

    request_id: str
    total: str
    """Empty if there is only one."""
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
        decisions=tuple(_decision(one, service.now) for one in past),
    )
    return request.app[TEMPLATES].page(request, "refusal.html", here="overview", view=view)


def _total(count: int, past: Sequence[PastRefusal]) -> str:
    if count == 1:
        return ""
    shown = "" if len(past) == count else f" Here are the newest {len(past)}."
    return f"{counted(count, 'refusal')} had this id: clients may send the same one again.{shown}"


def _decision(past: PastRefusal, now: int) -> PastDecisionView:
    refusal, decision = past.refusal, past.decision
    return PastDecisionView(
        title=f"Observed: would be refused: {refusal.reason}" if refusal.observed else f"Refused: {refusal.reason}",
        observed=refusal.observed,
        moment=moment(refusal.at, now),
        then=tuple(_facts(decision.then, key_id=refusal.key_id)),
        verdict=decision.verdict,
        otherwise=decision.otherwise is True,
        now=tuple(_facts(decision.now)),
        explain=explain_link(refusal),
    )


def _facts(lines: Iterable[Line], *, key_id: str = "") -> Iterator[Fact]:
    """A line without a label continues the one before. key_id: the key whose page is linked."""
    current = ""
    for line in lines:
        current = line.label or current
        link = f"/keys/{quote(key_id, safe='')}" if key_id and line.label == "key" else ""
        if current not in _ELSEWHERE:
            yield Fact(label=line.label.capitalize(), value=line.text, link=link, mono=current in _MONO)
