"""Bytes that are no request: why, and one quiet line for many of them."""

import asyncio
import logging
import re

from aiohttp import hdrs
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from sidecar.core.errors import Reason
from sidecar.core.units import counted

NOTICE_SECONDS = 10.0
"""How often the log is told, at most."""

_METHOD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ")
_log = logging.getLogger(__name__)


class Unacceptable(Exception):
    """What has come so far will not be waited for, or read, any further."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def reason_of(exc: BaseException) -> Reason:
    """Why aiohttp's parser, or we, refused."""
    if isinstance(exc, Unacceptable):
        return exc.reason
    if isinstance(exc, LineTooLong) or (exc.args and exc.args[0] == "Too many headers received"):
        return Reason.HEADERS_TOO_LARGE
    return Reason.METHOD_NOT_ALLOWED if isinstance(exc, BadHttpMethod) else Reason.BAD_REQUEST


def begins_with_unknown_method(data: bytes) -> bool:
    method = _METHOD.match(data)
    return method is not None and method[1].decode() not in hdrs.METH_ALL


class Notices:
    """Counts what strangers do, and logs a line for all of it now and then: nothing of their bytes, no tracebacks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seconds: float = NOTICE_SECONDS) -> None:
        self._loop, self._seconds = loop, seconds
        self._seen: dict[tuple[str, str], tuple[int, str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, noun: str, fate: str, last: str) -> None:
        """`fate` befell one more `noun` (of both there are few); `last` is where it came from."""
        number, _ = self._seen.get((noun, fate), (0, ""))
        self._seen[noun, fate] = (number + 1, last)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self.tell)

    def tell(self) -> None:
        """Log what has been counted."""
        seen, self._seen = self._seen, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for (noun, fate), (number, last) in seen.items():
            told = counted(number, noun)
            _log.warning("sidecar: %s %s in the last %g s, last from %s", told, fate, self._seconds, last)
