"""Who is signed in to the page. Held in memory only: a restart signs everyone out."""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

IDLE_SECONDS: Final = 2 * 3600
LONGEST_SECONDS: Final = 12 * 3600
_MOST: Final = 1_000
"""Past it, the session that was begun first ends."""
_MOST_OF_ONE: Final = 50
"""Of one admin token, so that nobody can end the sessions of others by signing in again and again."""


@dataclass(slots=True, kw_only=True)
class Session:
    """Someone's signing in. `digest` is that of the admin token, by which it is looked up at every request."""

    digest: bytes
    proof: str
    """Stands in each form of this session, so that no other site can send one."""
    begun: float
    seen: float

    def proves(self, proof: str) -> bool:
        return hmac.compare_digest(self.proof.encode(), proof.encode("utf-8", "surrogatepass"))


class Sessions:
    """Sessions by an id that only the browser's cookie holds. `clock` in Unix seconds; `new_token` makes 128 bits."""

    def __init__(self, *, clock: Callable[[], float], new_token: Callable[[], str]) -> None:
        self._clock = clock
        self._new_token = new_token
        self._sessions: dict[str, Session] = {}

    def begin(self, digest: bytes) -> str:
        """The id of a new session."""
        now = self._clock()
        for old in [name for name, session in self._sessions.items() if _is_over(session, now)]:
            del self._sessions[old]
        own = [name for name, session in self._sessions.items() if session.digest == digest]
        for old in own[: max(0, len(own) + 1 - _MOST_OF_ONE)]:
            del self._sessions[old]
        while len(self._sessions) >= _MOST:
            del self._sessions[next(iter(self._sessions))]
        session_id = self._new_token()
        self._sessions[session_id] = Session(digest=digest, proof=self._new_token(), begun=now, seen=now)
        return session_id

    def find(self, session_id: str) -> Session | None:
        """The session, and from now on it is idle anew; None for one that is over or never was."""
        session, now = self._sessions.get(session_id), self._clock()
        if session is None:
            return None
        if _is_over(session, now):
            del self._sessions[session_id]
            return None
        session.seen = now
        return session

    def end(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)


def _is_over(session: Session, now: float) -> bool:
    return not (0 <= now - session.begun < LONGEST_SECONDS and 0 <= now - session.seen < IDLE_SECONDS)
