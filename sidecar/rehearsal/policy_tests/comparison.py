"""Compares the expected outcome of a case with the actual one, and names the rules that decided."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET

from sidecar.config.build.config import Config
from sidecar.core.credentials import header_value
from sidecar.core.model import Allow, Deny, Headers
from sidecar.core.routing import NO_ROUTE
from sidecar.rehearsal.policy_tests.document import (
    ALLOW,
    DENY,
    NONE,
    ExpectEntry,
    ForwardedEntry,
    HeaderValues,
    ResponseEntry,
)
from sidecar.rehearsal.policy_tests.judge import ClientResponse, Judge, Outcome
from sidecar.rehearsal.policy_tests.suite import DEFAULT_UPSTREAM, KEY_TEXT

_ABSENT = "(absent)"
_NOT_FORWARDED = "(not forwarded)"


class Difference(NamedTuple):
    """One difference from what was expected. No text contains a key: `{key}` stands for it."""

    what: str
    expected: str
    got: str


def differences(judge: Judge, outcome: Outcome) -> list[Difference]:
    """Yields nothing if all is as expected."""
    found = list(_differences(judge, outcome))
    if found and outcome.case.key.text:
        forms = forms_of(judge.config, outcome.case.key.text)
        found = [Difference(*(without(forms, text) for text in one)) for one in found]
    return found


def forms_of(config: Config, key: str) -> Sequence[str]:
    """Spellings of the key in a header, the longest first."""
    return (*(header_value(source, key) for source in config.keys.sources if source.part is not None), key)


def without(forms: Sequence[str], text: str) -> str:
    for form in forms:
        text = text.replace(form, KEY_TEXT)
    return text


def _differences(judge: Judge, outcome: Outcome) -> Iterator[Difference]:
    expect = outcome.case.expect
    if (wanted := expect.decision) is not None and not _is_decision(wanted, outcome):
        observed = outcome.observed
        suffix = "" if observed is None else f", though it would deny: {observed.reason}"
        yield Difference("decision", wanted, f"{outcome.word}{suffix}")
    if expect.would_deny is not None and expect.would_deny != (would_deny := _would_deny(outcome)):
        yield Difference("would deny", expect.would_deny, would_deny)
    if expect.status is not None or expect.response is not None:
        yield from _of_response(expect, judge.response(outcome))
    if expect.route is not None and (route := _route(outcome)) != expect.route:
        yield Difference("route", expect.route, route)
    if expect.takes is not None:
        yield from _of_takes(expect.takes, outcome.takes)
    if expect.remaining:
        yield from _of_remaining(expect.remaining, outcome)
    if expect.forwarded is not None:
        yield from _of_forwarded(expect.forwarded, outcome)


def _is_decision(wanted: str, outcome: Outcome) -> bool:
    got = outcome.word
    return got == wanted or (wanted == DENY and got != ALLOW)


def _would_deny(outcome: Outcome) -> str:
    """`none` if nothing is refused."""
    if isinstance(outcome.decision, Deny):
        return f"(refused: {outcome.word})"
    return NONE if outcome.observed is None else str(outcome.observed.reason)


def _route(outcome: Outcome) -> str:
    """`none`, also if `unmatched` decides."""
    route = outcome.decision.route
    return NONE if route is None or route.name == NO_ROUTE else route.name


def _of_takes(wanted: Sequence[str] | Mapping[str, int], got: Mapping[str, int]) -> Iterator[Difference]:
    if isinstance(wanted, Mapping):
        if dict(wanted) != dict(got):
            yield Difference("takes", _json(dict(wanted)), _json(dict(got)))
    elif set(wanted) != set(got):
        yield Difference("takes", ", ".join(sorted(wanted)) or "nothing", ", ".join(sorted(got)) or "nothing")


def _of_remaining(wanted: Mapping[str, int], outcome: Outcome) -> Iterator[Difference]:
    left = {state.quota.name: state.remaining for state in outcome.decision.quota_states}
    for name, count in wanted.items():
        if left.get(name) != count:
            yield Difference(f"remaining {name}", str(count), str(left.get(name, "(not counted)")))


def _of_forwarded(wanted: ForwardedEntry, outcome: Outcome) -> Iterator[Difference]:
    allow = outcome.forwarded
    if allow is None:
        yield Difference("forwarded", "to the upstream", _NOT_FORWARDED)
        return
    key = outcome.case.key.text
    if wanted.target is not None and (target := wanted.target.replace(KEY_TEXT, key)) != allow.target:
        yield Difference("forwarded target", target, allow.target)
    if wanted.upstream is not None and wanted.upstream != (upstream := _upstream(allow)):
        yield Difference("upstream", wanted.upstream, upstream)
    yield from _of_headers("forwarded ", wanted, allow.headers, key)


def _upstream(allow: Allow) -> str:
    return allow.route.policy.forward.upstream or DEFAULT_UPSTREAM


def _of_response(expect: ExpectEntry, got: ClientResponse) -> Iterator[Difference]:
    if expect.status is not None and expect.status != got.status:
        yield Difference("status", str(expect.status), "(the upstream's)" if got.status is None else str(got.status))
    wanted = expect.response
    if wanted is None:
        return
    yield from _of_headers("response ", wanted, got.headers, "")
    if wanted.body is not UNSET:
        yield from _of_body(wanted.body, got.body)


def _of_body(wanted: Any, got: bytes | None) -> Iterator[Difference]:
    if got is None:
        yield Difference("body", _json(wanted), "(the upstream's)")
        return
    text = got.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        expected = wanted if isinstance(wanted, str) else _json(wanted)
        if expected != text:
            yield Difference("body", expected, text or "(empty)")
        return
    yield from _of_json("body", wanted, found)


def _of_json(path: str, wanted: Any, got: Any) -> Iterator[Difference]:
    """A difference for each member that is not as expected: `body.error.code`, `body.items[0]`."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        for name in dict.fromkeys((*wanted, *got)):
            yield from _of_json(f"{path}.{name}", wanted.get(name, UNSET), got.get(name, UNSET))
    elif isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        for place, (one, other) in enumerate(zip(wanted, got, strict=True)):
            yield from _of_json(f"{path}[{place}]", one, other)
    elif _json(wanted) != _json(got):
        yield Difference(path, _json(wanted), _json(got))


def _of_headers(prefix: str, wanted: ForwardedEntry | ResponseEntry, got: Headers, key: str) -> Iterator[Difference]:
    found: dict[str, list[str]] = {}
    for field, value in got:
        found.setdefault(field.decode("latin-1").lower(), []).append(value.decode("utf-8", "replace"))
    for name, values in _exact(wanted.headers, key):
        if (there := found.get(name.lower(), [])) != values:
            yield Difference(f"{prefix}{name}", " | ".join(values), _shown(there))
    for name in wanted.present:
        if name.lower() not in found:
            yield Difference(f"{prefix}{name}", "(any value)", _ABSENT)
    for name in wanted.without:
        if there := found.get(name.lower(), []):
            yield Difference(f"{prefix}{name}", _ABSENT, _shown(there))


def _exact(headers: HeaderValues, key: str) -> Iterator[tuple[str, list[str]]]:
    for name, values in headers.items():
        each = [values] if isinstance(values, str) else values
        yield name, [value.replace(KEY_TEXT, key) for value in each]


def _shown(values: Sequence[str]) -> str:
    return " | ".join(values) if values else _ABSENT


def _json(value: Any) -> str:
    return _ABSENT if value is UNSET else json.dumps(value, ensure_ascii=False, sort_keys=True)
