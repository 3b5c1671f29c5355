"""The admin tokens: those of the file, and the one that the environment may give."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, Literal

import yaml
from msgspec.structs import replace

from sidecar.config.build.policy import check_granted
from sidecar.config.decoder import decode
from sidecar.config.document import AdminSettings, AdminToken
from sidecar.config.errors import ConfigError, Path, Place, Report, did_you_mean
from sidecar.config.yaml_tree import read_nodes
from sidecar.core.apikey import wrapped
from sidecar.core.model import EVERY
from sidecar.core.scopes import Catalogue

VARIABLE: Final = "SIDECAR_ADMIN_TOKEN"
NAME_OF_VARIABLE: Final = "environment"
_LEAST_CHARACTERS: Final = 20
_TOKENS: Final = ("admin", "tokens")
HASH_PREFIX: Final = "sha256:"


def admin_of(
    settings: AdminSettings,
    environ: Mapping[str, str],
    report: Report,
    *,
    catalogue: Catalogue,
    plans: Collection[str],
) -> AdminSettings | None:
    """None where there is no token: nobody could use the listener, so that it is not opened."""
    _check_tokens(settings, catalogue, plans, report)
    tokens = (*_from_environ(environ, report), *settings.tokens)
    return replace(settings, tokens=tokens) if tokens else None


def _from_environ(environ: Mapping[str, str], report: Report) -> Iterator[AdminToken]:
    try:
        text = environ.get(VARIABLE, "")
    except ValueError as error:
        report.key_problem(("admin",), str(error), Place(VARIABLE))
        return
    if not text:
        return
    if wrapping := wrapped(text):
        report.key_problem(("admin",), f"has {wrapping} around it: set it without them", Place(VARIABLE))
        return
    if len(text) < _LEAST_CHARACTERS or not all("!" <= char <= "~" for char in text):
        wanted = f"must have at least {_LEAST_CHARACTERS} printable ASCII characters without spaces"
        report.key_problem(("admin",), f"{wanted}: make one with `sidecar admin token`", Place(VARIABLE))
        return
    yield AdminToken(name=NAME_OF_VARIABLE, digest=sha256(text.encode()).digest(), rights="write")


def _check_tokens(settings: AdminSettings, catalogue: Catalogue, plans: Collection[str], report: Report) -> None:
    names, digests = {NAME_OF_VARIABLE}, set[bytes]()
    for at, token in report.numbered(_TOKENS, settings.tokens):
        if token.name == NAME_OF_VARIABLE:
            report.problem((*at, "name"), f"is the name of the token in {VARIABLE}: choose another")
        elif token.name in names:
            report.problem((*at, "name"), "is the name of another token")
        if token.digest in digests:
            report.problem((*at, "hash"), "is that of another token: the audit trail could not tell them apart")
        names.add(token.name)
        digests.add(token.digest)
        _check_reach(token, at, catalogue, report)
        for place, plan in report.numbered((*at, "plans"), token.plans or ()):
            if plan not in plans:
                report.problem(place, f"unknown plan '{plan}'{did_you_mean(plan, plans)}")


def _check_reach(token: AdminToken, at: Path, catalogue: Catalogue, report: Report) -> None:
    check_granted(token.scopes or (), (*at, "scopes"), catalogue, report)
    if token.tenant == EVERY:
        report.problem((*at, "tenant"), "leave it out for a token that administers every tenant")
    if token.tenant is None:
        for name, bound in (("scopes", token.scopes), ("plans", token.plans)):
            if bound is not None:
                report.problem((*at, name), "is for a token of one tenant: add `tenant`, or leave it out")


def token_entry(
    text: str,
    *,
    name: str,
    rights: Literal["read", "write"],
    tenant: str | None = None,
    scopes: Sequence[str] = (),
    plans: Sequence[str] = (),
) -> str:
    """The item of `admin: tokens:`, as YAML, for the token `text`. Raises ValueError where a value is not valid."""
    written: dict[str, object] = {"name": name, "hash": HASH_PREFIX + sha256(text.encode()).hexdigest()}
    bounds = {"tenant": tenant, "scopes": list(scopes) or None, "plans": list(plans) or None}
    written |= {"rights": rights, **{bound: value for bound, value in bounds.items() if value is not None}}
    report = Report(Place(""))
    try:
        decode(read_nodes(yaml.safe_dump(written).encode(), ""), AdminToken, report, {})
        report.close()
    except ConfigError as error:
        raise ValueError("; ".join(f"{problem.path} {problem.message}" for problem in error.problems)) from None
    return yaml.safe_dump([written], sort_keys=False, allow_unicode=True)
