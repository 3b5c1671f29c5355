"""User-Agent fields as they are kept and shown: some clients put their key there."""

import re
from collections.abc import Iterable
from typing import Final

from sidecar.usage.anomalies import agent_text

HIDDEN: Final = "[redacted]"
_LIKE_A_KEY: Final = r"[0-9A-Za-z]{22,}"
"""128 random bits, as `looks_secret` tells them: no program's name or version is so long without a mark in it."""
_AFTER_A_PREFIX: Final = r"[^\s;,()\"']{16,}"
"""Also of keys made elsewhere, which may hold any characters."""


class Agents:
    """prefixes: what keys begin with."""

    def __init__(self, prefixes: Iterable[str] = ()) -> None:
        self.heed(prefixes)

    def heed(self, prefixes: Iterable[str]) -> None:
        """Look for these from here on."""
        known = sorted({prefix for prefix in prefixes if prefix}, reverse=True)
        begun = f"(?:{'|'.join(map(re.escape, known))}){_AFTER_A_PREFIX}|" if known else ""
        self._keys = re.compile(begun + _LIKE_A_KEY)

    def text(self, agent: bytes) -> str:
        """Printable ASCII, cut, and without what may be a key."""
        return self._keys.sub(HIDDEN, agent_text(agent))
