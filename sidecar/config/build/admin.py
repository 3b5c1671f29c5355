"""The `admin` section, and the token that the environment may give."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, Literal

import msgspec
import yaml

from sidecar.config.fields import parse_address
from sidecar.config.document import given
from sidecar.config.settings import AdminSettings, AdminToken
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.build.policy import check_granted
from sidecar.config.document import AdminEntry, AdminTokenEntry
from sidecar.core.model import EVERY
from sidecar.core.scopes import Catalogue

VARIABLE: Final = "SIDECAR_ADMIN_TOKEN"
_NAME_OF_VARIABLE: Final = "environment"
_LEAST_CHARACTERS: Final = 20
_TOKENS: Final = ("admin", "tokens")
HASH_PREFIX: Final = "sha256:"


def admin_of(
    written: str | AdminEntry | None,
    environ: Mapping[str, str],
    report: Report,
    *,
    catalogue: Catalogue,
    plans: Collection[str],
) -> AdminSettings | None:
    """None where there is no token: nobody could use the listener, so that it is not opened."""
    entry = AdminEntry(listen=written) if isinstance(written, str) else written or AdminEntry()
    _check_tokens(entry, catalogue, plans, report)
    tokens = (*_from_environ(environ, report), *map(_token, entry.tokens))
    if not tokens:
        return None
    hosts = tuple(host.lower() for host in entry.hosts)
    return AdminSettings(listen=parse_address(entry.listen), tokens=tokens, hosts=hosts)


def _token(entry: AdminTokenEntry) -> AdminToken:
    return AdminToken(
        name=entry.name,
        digest=bytes.fromhex(entry.hash.removeprefix(HASH_PREFIX)),
        rights=entry.rights,
        tenant=given(entry.tenant),
        scopes=given(entry.scopes),
        plans=given(entry.plans),
    )


def _from_environ(environ: Mapping[str, str], report: Report) -> Iterator[AdminToken]:
    text = environ.get(VARIABLE, "")
    if not text:
        return
    if len(text) < _LEAST_CHARACTERS or not all("!" <= char <= "~" for char in text):
        wanted = f"must have at least {_LEAST_CHARACTERS} printable ASCII characters without spaces"
        report.problem(("admin",), f"{VARIABLE} {wanted}: make one with `sidecar admin token`")
        return
    yield AdminToken(name=_NAME_OF_VARIABLE, digest=sha256(text.encode()).digest())


def _check_tokens(entry: AdminEntry, catalogue: Catalogue, plans: Collection[str], report: Report) -> None:
    names, hashes = {_NAME_OF_VARIABLE}, set[str]()
    for at, token in report.numbered(_TOKENS, entry.tokens):
        if token.name == _NAME_OF_VARIABLE:
            report.problem((*at, "name"), f"is the name of the token in {VARIABLE}: choose another")
        elif token.name in names:
            report.problem((*at, "name"), "is the name of another token")
        if token.hash in hashes:
            report.problem((*at, "hash"), "is that of another token: who did what could not be told")
        names.add(token.name)
        hashes.add(token.hash)
        _check_reach(token, at, catalogue, report)
        for place, plan in report.numbered((*at, "plans"), given(token.plans) or ()):
            if plan not in plans:
                report.problem(place, f"unknown plan '{plan}'{did_you_mean(plan, plans)}")


def _check_reach(token: AdminTokenEntry, at: Path, catalogue: Catalogue, report: Report) -> None:
    check_granted(given(token.scopes) or (), (*at, "scopes"), catalogue, report)
    if given(token.tenant) == EVERY:
        report.problem((*at, "tenant"), "leave it out for a token that administers every tenant")
    if given(token.tenant) is None:
        for name in ("scopes", "plans"):
            if given(getattr(token, name)) is not None:
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
    """The item of `admin: tokens:`, as YAML, for the token `text`. Raises ValueError for what it cannot have."""
    written: dict[str, object] = {"name": name, "hash": HASH_PREFIX + sha256(text.encode()).hexdigest()}
    bounds = {"tenant": tenant, "scopes": list(scopes) or None, "plans": list(plans) or None}
    written |= {"rights": rights, **{bound: value for bound, value in bounds.items() if value is not None}}
    try:
        msgspec.convert(written, AdminTokenEntry)
    except msgspec.ValidationError as error:
        named = "a name begins with a letter or digit and has 1 to 64 of these: letters, digits, . _ : -"
        wanted = {"`$.name`": named, "`$.tenant`": "an empty tenant is none: name one"}
        raise ValueError(wanted.get(str(error).split()[-1], f"the entry would not be valid: {error}")) from None
    return yaml.safe_dump([written], sort_keys=False, allow_unicode=True)
