"""What of a request may be written down: no query's values, and nothing that begins like a key."""

import re
from collections.abc import Iterable
from typing import Final

HIDDEN: Final = "[redacted]"
_MAX_NAME = 20
"""Of a query's parameter. A whole key is longer, so that one that stands where a name should is never shown."""
_NAME = re.compile(rf"[A-Za-z0-9_.\-\[\]]{{1,{_MAX_NAME}}}")
_KEY_BODY = "[0-9A-Za-z]{16,}"
"""What follows a prefix in a key of ours is at least 22 of these; one that is mistyped may be shorter."""


class Redaction:
    """prefixes: what keys begin with; empty ones are left out, because anything begins so."""

    def __init__(self, prefixes: Iterable[str] = ()) -> None:
        self.reconfigure(prefixes)

    def reconfigure(self, prefixes: Iterable[str]) -> None:
        """Look for these from here on."""
        self._prefixes = sorted({prefix for prefix in prefixes if prefix}, reverse=True)
        self._keys = re.compile(f"({'|'.join(map(re.escape, self._prefixes))}){_KEY_BODY}")

    def text(self, text: str, *, longest: int) -> str:
        """Without keys, and cut. A key that the cut goes through is hidden, too."""
        # Most texts hold none, and this asks in a tenth of the time that a pattern takes.
        for prefix in self._prefixes:
            if prefix in text:
                text = self._keys.sub(rf"\1{HIDDEN}", text)
                break
        return text if len(text) <= longest else text[:longest]

    def path(self, target: str, *, longest: int) -> str:
        """What of a request-target stands before its query."""
        return self.text(target.partition("?")[0].partition("#")[0], longest=longest)

    def address(self, text: str, *, longest: int) -> str:
        """A URL without user, query and fragment, as a Referer may hold them."""
        before = text.partition("?")[0].partition("#")[0]
        scheme, slashes, rest = before.partition("://")
        authority, slash, path = rest.partition("/")
        if slashes and "@" in authority:
            before = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
        return self.text(before, longest=longest)


def query_names(target: str, *, longest: int) -> str | None:
    """`page=*&sort=*`: the names of a query's parameters; what has no plain, short name is `*`.

    None without a query.
    """
    _, mark, query = target.partition("?")
    if not mark:
        return None
    shown = "&".join(_named(parameter) for parameter in query[: longest * 4].split("&"))
    return shown if len(shown) <= longest else shown[:longest]


def _named(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}=*" if equals and _NAME.fullmatch(name) else "*"
