"""The list of keys, its export, and the page that disables or revokes many."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, get_args
from urllib.parse import urlencode

from aiohttp import hdrs, web

from sidecar.admin.api.routes import service_of
from sidecar.admin.problems import Problem, unknown_key
from sidecar.admin.reading import MOST_AT_ONCE
from sidecar.admin.service import AdminService
from sidecar.admin.web.charts import spark
from sidecar.admin.web.formatting import PAGE_HEADERS, TEMPLATES, moment_or_none, status_badge
from sidecar.admin.web.key_form import Form, form_of
from sidecar.admin.web.stats import totals_by_key
from sidecar.admin.web.view_models import ChosenKey, KeyList, KeyRow, ManyKeys, Option
from sidecar.core.apikey import looks_secret
from sidecar.core.model import EVERY, ApiKey
from sidecar.core.units import counted
from sidecar.keys.ports import (
    NO_END,
    KeyFilter,
    Sort,
    StatusFilter,
    StoreUnavailable,
    UnknownKey,
    after_cursor,
    sort_time,
)
from sidecar.keys.records import public_key
from sidecar.keys.transfer.formats import csv_header, csv_line
from sidecar.keys.transitions import ManyAction
from sidecar.usage.recorder import DAY

PAGE_SIZE: Final = 50
_STORED_BEFORE: Final = 12
"""Characters of a key that earlier versions stored readably, whatever its prefix; old keys keep them."""


async def list_keys(request: web.Request) -> web.Response:
    """Show a page of the keys that match the search and the filters."""
    service, query = service_of(request), _query(request)
    if looks_secret(query["search"]):
        # A pasted whole key means a search for its prefix. The rest must not reach the browser's history.
        text = query["search"]
        prefix = min(service.config.keys.stored_prefix(text), text[:_STORED_BEFORE], key=len)
        raise web.HTTPSeeOther(_address({"search": prefix}))
    wanted = _filter(query, service.now)
    page = await service.list(after_cursor(wanted, query["after"]))
    total = await service.total(wanted)
    totals = await totals_by_key(service, page.keys)
    more = {name: value for name, value in query.items() if name != "after" and value}
    filtered = any(value for name, value in query.items() if name != "sort")
    view = KeyList(
        rows=tuple(_row(key, totals[key.id], service.now) for key in page.keys),
        search=query["search"],
        tenant=query["tenant"],
        environments=_environments(service, query["environment"]),
        standings=_standings(query["standing"]),
        one_tenant=service.admin.tenant is not None,
        filtered=filtered,
        unused=_unused(query["unused"]),
        sorts=_sorts(query["sort"]),
        total="more than 10,000 keys" if total > _MOST_SHOWN else counted(total, "key"),
        first=_address(more) if query["after"] else None,
        next=_address({**more, "after": page.next}) if page.next else None,
        export=_address(more, "/keys/export"),
        all_to_disable=_address({**more, "action": "disable"}, _MANY) if filtered else None,
        all_to_revoke=_address({**more, "action": "revoke"}, _MANY) if filtered else None,
        done=_done(request.query),
        done_kind="warn" if request.query.get("done") == _NONE_CHOSEN else "good",
    )
    return request.app[TEMPLATES].page(request, "keys.html", view=view)


async def export_keys(request: web.Request) -> web.StreamResponse:
    """Send all keys that match as CSV, without keys and hashes, as `sidecar keys export` writes them."""
    service = service_of(request)
    pages = service.pages(_filter(_query(request), service.now))
    first = await anext(pages)  # A failure here is still an error response.
    response = web.StreamResponse(headers={**PAGE_HEADERS, hdrs.CONTENT_DISPOSITION: 'attachment; filename="keys.csv"'})
    response.content_type, response.charset = "text/csv", "utf-8"
    await response.prepare(request)
    await response.write((csv_header() + _lines(first, service.now)).encode())
    try:
        async for page in pages:
            await response.write(_lines(page, service.now).encode())
    except (Problem, StoreUnavailable):
        # The export is incomplete: the client sees that its end is missing.
        if request.transport is not None:
            request.transport.abort()
    return response


def _lines(keys: Sequence[ApiKey], now: int) -> str:
    return "".join(csv_line(public_key(key, now)) for key in keys)


def _query(request: web.Request) -> dict[str, str]:
    names = ("search", "tenant", "environment", "standing", "unused", "sort", "after")
    return {name: request.query.get(name, "").strip() for name in names}


def _filter(query: Mapping[str, str], now: int) -> KeyFilter:
    known: dict[str, StatusFilter] = {name: name for name in get_args(StatusFilter)}
    sorts: dict[str, Sort] = {name: name for name in get_args(Sort)}
    return KeyFilter(
        search=query["search"] or None,
        tenant=query["tenant"] or None,
        environment=query["environment"] or None,
        effective_status=known.get(query["standing"]),
        unused_since=now - int(query["unused"]) * DAY if query["unused"] in _UNUSED else None,
        sort=sorts.get(query["sort"], "created"),
        limit=PAGE_SIZE,
    )


def _row(key: ApiKey, totals: list[int], now: int) -> KeyRow:
    ends = sort_time(key, "ends") or NO_END
    return KeyRow(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        environment=key.environment or "",
        status=status_badge(key, now),
        scopes=key.scopes,
        plan=key.plan or "",
        ends=moment_or_none(ends if ends < NO_END else None, now),
        last_used=moment_or_none(key.last_used_at, now),
        requests=f"{sum(totals):,}",
        spark=spark(totals, span="24 hours"),
    )


def _environments(service: AdminService, chosen: str) -> tuple[Option, ...]:
    names = [*service.config.keys.environments, EVERY]
    every = Option(value="", label="Any environment")
    return every, *(Option(value=name, label=name, chosen=name == chosen) for name in names)


def _standings(chosen: str) -> tuple[Option, ...]:
    every = Option(value="", label="Any status")
    names = get_args(StatusFilter)
    return every, *(Option(value=name, label=name.capitalize(), chosen=name == chosen) for name in names)


_SORTS: Final[Mapping[Sort, str]] = {
    "created": "Newest",
    "name": "Name",
    "tenant": "Tenant",
    "used": "Last used",
    "unused": "Longest unused",
    "ends": "Ends soonest",
}
_MOST_SHOWN: Final = 10_000


def _sorts(chosen: str) -> tuple[Option, ...]:
    return tuple(Option(value=name, label=label, chosen=name == chosen) for name, label in _SORTS.items())


_UNUSED: Final = {"30": "Unused for 30 days", "90": "Unused for 90 days", "365": "Unused for a year"}
"""By days."""


def _unused(chosen: str) -> tuple[Option, ...]:
    every = Option(value="", label="Any last use")
    return every, *(Option(value=days, label=label, chosen=days == chosen) for days, label in _UNUSED.items())


def _address(fields: Mapping[str, str], path: str = "/keys") -> str:
    return f"{path}?{urlencode(fields)}" if fields else path


# Disable or revoke many keys: the page that lists them, and the action.


_MANY: Final = "/keys/many"
_VERBS: Final[Mapping[str, ManyAction]] = {name: name for name in get_args(ManyAction)}
_CHANGED: Final[Mapping[ManyAction, str]] = {"disable": "Disabled", "revoke": "Revoked"}
_NONE_CHOSEN: Final = "none"


async def confirm_many(request: web.Request) -> web.Response:
    """List the keys that the action would change, chosen one by one or all that match, and a button to confirm it."""
    service, query, ids = service_of(request), _query(request), request.query.getall("id", [])
    service.must_write()
    action = _VERBS.get(request.query.get("action", ""))
    if action is None or not (ids or any(value for name, value in query.items() if name != "sort")):
        raise web.HTTPSeeOther(_address({"done": _NONE_CHOSEN}))
    wanted = _filter(query, service.now)
    keys = await service.open_to(action, ids or wanted)
    number = counted(len(keys), "key")
    view = ManyKeys(
        action=action,
        title=f"{action.capitalize()} {number}",
        destructive=action == "revoke",
        effects=tuple(_effects(action)),
        keys=tuple(_chosen(key, service.now) for key in keys),
        tenants=counted(len({key.tenant for key in keys}), "tenant"),
        unused_since="" if ids or wanted.unused_since is None else str(wanted.unused_since),
    )
    return request.app[TEMPLATES].page(request, "many.html", view=view)


async def carry_out_many(request: web.Request) -> web.Response:
    """Change all keys of the form or none, and show the list."""
    service, form = service_of(request), await form_of(request)
    ids, action = list(dict.fromkeys(form.getall("id", []))), _VERBS.get(form.get("action", ""))
    if action is None or len(ids) > MOST_AT_ONCE:
        raise Problem(400, "not_a_form", "the body is not a form as these pages submit it")
    try:
        changed = await service.change_all(action, ids, unused_since=_unused_since(form))
    except UnknownKey:
        raise unknown_key() from None
    raise web.HTTPSeeOther(_address({"done": action, "changed": str(len(changed)), "of": str(len(ids))}))


def _unused_since(form: Form) -> int | None:
    text = form.get("unused_since", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else None


_DIGITS: Final = 18


def _effects(action: ManyAction) -> Iterator[str]:
    yield "From the next request on, the sidecar refuses these keys with 401."
    yield "Their open streams and tunnels are closed within seconds."
    if action == "revoke":
        yield "This is permanent: a revoked key cannot be enabled, changed or rotated."
    else:
        yield "Nothing else changes. You can enable each again at any time."
    yield "All of them change or none, and each change stands in the audit trail."


def _chosen(key: ApiKey, now: int) -> ChosenKey:
    return ChosenKey(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        tenant=key.tenant or "",
        status=status_badge(key, now),
        last_used=moment_or_none(key.last_used_at, now),
    )


def _done(query: Mapping[str, str]) -> str:
    done, numbers = query.get("done", ""), [query.get(name, "") for name in ("changed", "of")]
    if done == _NONE_CHOSEN:
        return "Select keys first, or filter the list."
    if done not in _VERBS or not all(text.isascii() and text.isdigit() and len(text) <= 4 for text in numbers):
        return ""
    changed, left = int(numbers[0]), max(0, int(numbers[1]) - int(numbers[0]))
    stayed = f" {counted(left, 'key')} left unchanged: used or changed in the meantime." if left else ""
    return f"{_CHANGED[_VERBS[done]]} {counted(changed, 'key')}.{stayed}"
