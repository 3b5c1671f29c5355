"""What may be logged about a request: no values of a query, and nothing that begins or looks like a key.

A key whose prefix was mangled (`8v_live_…`) does not begin like one. So a run of 30 or more letters and digits is also
hidden if it has a digit, a capital and a small letter; one in 200 random runs has no digit. UUIDs, hashes in hex,
numbers and words in one case are shown; long identifiers in base64 or base62 are not.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

HIDDEN: Final = "[redacted]"
_MAX_NAME = 20
"""Longest name of a query parameter. A key is longer, so one in place of a name is never shown."""
_NAME = re.compile(rf"[A-Za-z0-9_.\-\[\]]{{1,{_MAX_NAME}}}")
_KEY_BODY = "[0-9A-Za-z]{16,}"
"""At least 22 of these follow the prefix in our keys; a mistyped key may be shorter."""
_ESCAPED_ALNUM = "%(?:25)*+(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])"
"""A letter or digit, percent-encoded once or more often: `%61`, `%2561`."""
_ENCODED_BODY = f"(?:[0-9A-Za-z]|{_ESCAPED_ALNUM}){{16,}}+"
_RUN_CHARS: Final = 30
_RUN = re.compile(f"[0-9A-Za-z]{{{_RUN_CHARS},}}+")
_ENCODED_RUN = re.compile(f"(?:[0-9A-Za-z]|{_ESCAPED_ALNUM}){{{_RUN_CHARS},}}+")
_NESTED = re.compile("%(?:25)*[0-9A-Fa-f]?%(?:25)*(?:3[0-9]|[46][1-6])")
"""An escape whose own digits are escaped: `%%36%31`, `%256%31`."""
_AGAIN_ENCODED = re.compile("%(?:25)+")
_HEX_DIGITS: Final = tuple((f"%{ord(digit):x}", digit) for digit in "0123456789ABCDEFabcdef")
_MOST_ROUNDS = 4
"""Most rounds of decoding nested escapes. No client needs more; each takes up to a tenth of a millisecond."""
_BEYOND: Final = 1024
"""Characters after the cut that are checked; an encoded prefix and 16 more characters seldom need half of them."""


class Redaction:
    """prefixes: those of keys; empty ones are left out, because they match anything."""

    def __init__(self, prefixes: Iterable[str] = ()) -> None:
        self.reconfigure(prefixes)

    def reconfigure(self, prefixes: Iterable[str]) -> None:
        """Use these prefixes from now on."""
        self._prefixes = sorted({prefix for prefix in prefixes if prefix}, reverse=True)
        self._keys = re.compile(f"({'|'.join(map(re.escape, self._prefixes))}){_KEY_BODY}")
        escaped = [f"%(?:25)*{ord(char):02x}" for char in sorted(set("".join(self._prefixes))) if not char.isalnum()]
        self._escapes = re.compile("|".join([_ESCAPED_ALNUM, *escaped]), re.IGNORECASE)
        self._encoded_keys = re.compile(f"(?:{'|'.join(map(_encoded, self._prefixes))}){_ENCODED_BODY}")

    def text(self, text: str, *, longest: int) -> str:
        """The text without keys, however percent-encoded, and truncated. A key at the cut is hidden, too."""
        # Most texts contain none, and this check takes a tenth of the time of a pattern.
        for prefix in self._prefixes:
            if prefix in text:
                text = self._keys.sub(rf"\1{HIDDEN}", text)
                break
        if len(text) >= _RUN_CHARS and _RUN.search(text) is not None:
            text = _RUN.sub(_unless_random, text[: longest + _BEYOND])
        if "%" in text and self._prefixes:
            text = self._without_encoded(text[: longest + _BEYOND])
        return text if len(text) <= longest else text[:longest]

    def _without_encoded(self, text: str) -> str:
        """Hide the whole text if a key appears only after decoding nested escapes."""
        # Nobody needs to encode the characters of keys, so most texts end here.
        if self._escapes.search(text) is None:
            return text
        text = self._without_once_encoded(text)
        if _NESTED.search(text) is None:
            return text
        unnested = _unnested(text)
        return text if self._without_once_encoded(unnested) == unnested else HIDDEN

    def _without_once_encoded(self, text: str) -> str:
        return _ENCODED_RUN.sub(_unless_random, self._encoded_keys.sub(HIDDEN, text))

    def path(self, target: str, *, longest: int) -> str:
        """The part of a request-target before its query."""
        return self.text(target.partition("?")[0].partition("#")[0], longest=longest)

    def address(self, text: str, *, longest: int) -> str:
        """A URL without the user, query and fragment that a Referer may contain."""
        before = text.partition("?")[0].partition("#")[0]
        scheme, slashes, rest = before.partition("://")
        authority, slash, path = rest.partition("/")
        if slashes and "@" in authority:
            before = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
        return self.text(before, longest=longest)


def _encoded(prefix: str) -> str:
    """The pattern of a prefix whose characters may be percent-encoded, once or more often."""
    return "".join(f"(?:{re.escape(char)}|(?i:%(?:25)*{ord(char):02x}))" for char in prefix)


def _unless_random(run: re.Match[str]) -> str:
    """The run as it is, or HIDDEN if it looks like the random part of a key."""
    text = run[0]
    plain = unquote(_AGAIN_ENCODED.sub("%", text)) if "%" in text else text
    is_random = not (plain.isalpha() or plain == plain.lower() or plain == plain.upper())
    return HIDDEN if is_random else text


def _unnested(text: str) -> str:
    """The text with the digits of escapes decoded; `replace` takes a tenth of the time of a function for each."""
    for _ in range(_MOST_ROUNDS):
        before, text = text, _AGAIN_ENCODED.sub("%", text)
        for escape, digit in _HEX_DIGITS:
            text = text.replace(escape, digit)
        if text == before:
            break
    return text


def query_names(target: str, *, longest: int) -> str | None:
    """`page=*&sort=*`: the names of a query's parameters; anything but a plain, short name is `*`.

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
