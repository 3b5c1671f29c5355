"""Pages of keys in SQLite, newest first, at a cost that hardly grows with the number of keys.

Every statement reads keys in order of `serial` and stops at the end of the page, or begins with the rarest condition:

- at most one filter: its index, which holds serials in order;
- several filters, or words to search for: the full-text index, which combines all of them, in order;
- only expired or retired keys: the index on their time, because they may be few among many, and old.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sidecar.keys.ports import KeyFilter
from sidecar.keys.records import COLUMNS

MOST_BEGINNINGS: Final = 10_000
"""Most ids or stored prefixes that a searched text may begin; a more common beginning is not searched for there."""

_SELECT: Final = f"SELECT serial, {', '.join(COLUMNS)} FROM"
_WORD: Final = re.compile(r"[^\W_]+")
_BEGINNING: Final = re.compile(r"[A-Za-z0-9_-]{3,100}")
_MARK: Final = "\ue000"
_EXPIRED: Final = "status = 'active' AND expires_at IS NOT NULL AND expires_at <= :now"
_RETIRED: Final = (
    "status = 'active' AND retires_at IS NOT NULL AND retires_at <= :now AND (expires_at IS NULL OR expires_at > :now)"
)
_TIMES: Final = {
    "active": "(expires_at IS NULL OR expires_at > :now) AND (retires_at IS NULL OR retires_at > :now)",
    "expired": _EXPIRED,
    "retired": _RETIRED,
}
_INDEXES: Final = {"expired": "api_key_expiry", "retired": "api_key_retirement"}

Statement = tuple[str, dict[str, Any]]


def page_statements(wanted: KeyFilter, now: int) -> Iterator[Statement]:
    """Statements whose rows, `serial` and then COLUMNS, together hold the page. `now` in microseconds."""
    page = _Page(wanted, now)
    if not wanted.search or wanted.search.isspace():
        yield page.by_time() if wanted.effective_status in _INDEXES else page.by_filter()
    else:
        yield from page.by_search(wanted.search.strip())


class _Page:
    """Builds the statements of one page."""

    def __init__(self, wanted: KeyFilter, now: int) -> None:
        self._wanted = wanted
        self._status = "active" if wanted.effective_status in _TIMES else wanted.effective_status
        equal = {"tenant": wanted.tenant, "environment": wanted.environment, "status": self._status}
        self._equal = {column: value for column, value in equal.items() if value is not None}
        self._values = {
            **self._equal,
            "now": now,
            "after": wanted.after,
            "limit": -1 if wanted.limit is None else wanted.limit,
        }

    def by_search(self, text: str) -> Iterator[Statement]:
        if words := _WORD.findall(text):
            # Only the last word may be unfinished: a whole word is found without reading every word that it begins.
            yield self.by_text([*(f'"{word}"' for word in words[:-1]), f'"{words[-1]}" *'])
        if _BEGINNING.fullmatch(text):
            for column in ("id", "prefix"):
                yield self.by_beginning(column, text)

    def by_filter(self) -> Statement:
        if len(self._equal) > 1:
            return self.by_text([])
        index = next((f"INDEXED BY api_key_{column}" for column in self._equal), "")
        return f"{_SELECT} api_key {index} {self._where()}", self._values

    def by_text(self, terms: Sequence[str]) -> Statement:
        facets = [f'"{_MARK}{facet}"' for facet in self._facets()]
        matched = self._where("key_text MATCH :match", after="key_text.rowid")
        # CROSS JOIN keeps SQLite from reversing the order.
        sql = f"{_SELECT} key_text CROSS JOIN api_key ON serial = key_text.rowid {matched}"
        return sql.replace("ORDER BY serial", "ORDER BY key_text.rowid"), {
            **self._values,
            "match": " AND ".join([*terms, *facets]),
        }

    def by_time(self) -> Statement:
        index = _INDEXES[self._wanted.effective_status or ""]
        # Serials are sorted before a key is read.
        inner = f"SELECT serial FROM api_key INDEXED BY {index} {self._where()}"  # noqa: S608 - no input
        return f"{_SELECT} api_key WHERE serial IN ({inner}) ORDER BY serial DESC", self._values

    def by_beginning(self, column: str, text: str) -> Statement:
        among = f"FROM api_key WHERE {column} >= :first AND {column} < :last"
        few = f"(SELECT count(*) FROM (SELECT 1 {among} LIMIT {MOST_BEGINNINGS + 1})) <= {MOST_BEGINNINGS}"  # noqa: S608 - no input
        sql = f"{_SELECT} api_key {self._where(few, f'serial IN (SELECT serial {among} LIMIT {MOST_BEGINNINGS})')}"
        return sql, {**self._values, "first": text, "last": f"{text}\U0010ffff"}

    def _facets(self) -> Iterator[str]:
        for column, letter in (("tenant", "t"), ("environment", "e")):
            if column in self._equal:
                yield letter + self._equal[column].encode("utf-8", "replace").hex()
        if self._status is not None:
            yield f"s{self._status}"
        if self._wanted.effective_status == "expired":
            yield "x1"
        if self._wanted.effective_status == "retired":
            yield "r1"

    def _where(self, *conditions: str, after: str = "serial") -> str:
        terms = [*conditions, *(f"{column} = :{column}" for column in self._equal)]
        if self._wanted.effective_status in _TIMES:
            terms.append(_TIMES[self._wanted.effective_status])
        if self._wanted.after is not None:
            terms.append(f"{after} < (SELECT serial FROM api_key WHERE id = :after)")  # noqa: S608 - no input
        where = f"WHERE {' AND '.join(terms)} " if terms else ""
        return f"{where}ORDER BY serial DESC LIMIT :limit"
