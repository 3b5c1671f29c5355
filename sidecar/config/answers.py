"""The `identity` and `errors` sections, and the templates that other sections hold."""

from collections.abc import Mapping

from sidecar.config.document import ErrorEntry, IdentityEntry, KeysEntry, given
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.settings import ErrorAnswer, Identity
from sidecar.core.errors import Reason
from sidecar.core.headers import fold
from sidecar.core.templates import ERROR_PLACEHOLDERS, IDENTITY_PLACEHOLDERS, unknown_placeholders

_DEFAULT = "default"
_NONE: frozenset[str] = frozenset()


def identity_of(entry: IdentityEntry, keys: KeysEntry, report: Report) -> Identity:
    """What is injected. No two of its names are one to a reader that folds them, nor one that passes through."""
    passing = {_folded(name) for name in map(given, (source.header for source in keys.pass_through)) if name}
    seen = {_folded(entry.request_id)}
    for name, template in entry.headers.items():
        path: Path = ("identity", "headers", name)
        check_template(template, IDENTITY_PLACEHOLDERS, path, report)
        if _folded(name) in seen:
            report.key_problem(path, "is the same header as another one here")
        if _folded(name) in passing:
            report.key_problem(path, "is a header that keys.pass_through lets the client set")
        seen.add(_folded(name))
    return Identity(headers=entry.headers, request_id=entry.request_id, strip=entry.strip)


def errors_of(
    entries: Mapping[str, ErrorEntry], report: Report
) -> tuple[Mapping[Reason, ErrorAnswer], ErrorAnswer | None]:
    """The answer for each reason named, and the one for the rest."""
    found: dict[str, ErrorAnswer] = {}
    known = [*(reason.value for reason in Reason), _DEFAULT]
    for key, entry in entries.items():
        path: Path = ("errors", key)
        answer = _answer(entry, path, report)
        for name in (part.strip() for part in key.split("|")):
            if name not in known:
                report.key_problem(path, f"unknown reason '{name}'{did_you_mean(name, known)}")
            elif name in found:
                report.key_problem(path, f"the reason '{name}' is answered twice")
            else:
                found[name] = answer
    default = found.pop(_DEFAULT, None)
    return {Reason(name): answer for name, answer in found.items()}, default


def check_template(template: object, allowed: frozenset[str], path: Path, report: Report) -> None:
    """Reports each placeholder that `allowed` does not hold, at the text that it stands in."""
    match template:
        case dict():
            for name, value in template.items():
                check_template(value, allowed, (*path, name), report)
        case list():
            for index, value in enumerate(template):
                check_template(value, allowed, (*path, index), report)
        case str():
            for name in unknown_placeholders(template, allowed):
                close = did_you_mean(name, allowed) if allowed else ": no placeholder can stand here"
                report.problem(path, f"unknown placeholder '{{{name}}}'{close}")


def _answer(entry: ErrorEntry, path: Path, report: Report) -> ErrorAnswer:
    check_template(given(entry.body), ERROR_PLACEHOLDERS, (*path, "body"), report)
    for name, value in (given(entry.headers) or {}).items():
        check_template(value, _NONE, (*path, "headers", name), report)
    return ErrorAnswer(status=given(entry.status), headers=given(entry.headers), body=given(entry.body))


def _folded(name: str) -> bytes:
    return fold(name.encode())
