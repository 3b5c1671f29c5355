"""Pages of keys in SQLite, at a cost that hardly grows with the number of keys.

Newest first, every statement reads keys in order of `serial` and stops at the end of the page, or begins with the
rarest condition:

- at most one filter: its index, which holds serials in order;
- several filters, or search words: the full-text index, which combines them, in order;
- only expired, retiring or retired keys: the index on their time, because they may be rare and old.

In any other order, keys are read in the order of its index up to the end of the page. Only with a tenant or search
words, the matching keys are read and sorted.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sidecar.keys.ports import KeyFilter
from sidecar.keys.records import COLUMNS
from sidecar.store.sqlite.schema import SORTED_BY

MOST_BEGINNINGS: Final = 10_000
"""A search term with which more ids or stored prefixes than this begin is too common to search for in them."""

_SELECT: Final = f"SELECT serial, {', '.join(COLUMNS)} FROM"
_WORD: Final = re.compile(r"[^\W_]+")
_BEGINNING: Final = re.compile(r"[A-Za-z0-9_-]{3,100}")
_BEGUN: Final = ("id", "prefix")
_MARK: Final = "\ue000"
_EXPIRED: Final = "status = 'active' AND expires_at IS NOT NULL AND expires_at <= :now"
_RETIRED: Final = (
    "status = 'active' AND retires_at IS NOT NULL AND retires_at <= :now AND (expires_at IS NULL OR expires_at > :now)"
)
_RETIRING: Final = (
    "status = 'active' AND retires_at IS NOT NULL AND retires_at > :now AND (expires_at IS NULL OR expires_at > :now)"
)
_TIMES: Final = {
    "active": "(expires_at IS NULL OR expires_at > :now) AND (retires_at IS NULL OR retires_at > :now)",
    "retiring": _RETIRING,
    "expired": _EXPIRED,
    "retired": _RETIRED,
}
_UNUSED: Final = "coalesce(last_used_at, created_at) <= :unused"
_INDEXES: Final = {"expired": "api_key_expiry", "retiring": "api_key_retirement", "retired": "api_key_retirement"}

Statement = tuple[str, dict[str, Any]]


def page_statements(wanted: KeyFilter, now: int) -> Iterator[Statement]:
    """Statements whose rows (`serial`, then COLUMNS) together contain the page. `now` in microseconds."""
    page = _Page(wanted, now)
    if wanted.sort != "created":
        yield page.by_order()
    elif not wanted.search or wanted.search.isspace():
        yield page.by_time() if wanted.effective_status in _INDEXES else page.by_filter()
    else:
        yield from page.by_search(wanted.search.strip())


def count_statement(wanted: KeyFilter, now: int, most: int) -> Statement:
    """One row: how many keys the filter selects, counted up to `most`."""
    sql, values = _Page(wanted, now).all_of()
    return f"SELECT count(*) FROM (SELECT 1 FROM api_key {sql} LIMIT {most})", values  # noqa: S608 - no input


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
            "at": wanted.after_at,
            "unused": wanted.unused_since,
            "limit": -1 if wanted.limit is None else wanted.limit,
        }

    def by_search(self, text: str) -> Iterator[Statement]:
        if terms := _terms(text):
            yield self.by_text(terms)
        yield from self._beginnings(text)

    def _beginnings(self, text: str) -> Iterator[Statement]:
        if _BEGINNING.fullmatch(text):
            for column in _BEGUN:
                yield self.by_beginning(column, text)

    def all_of(self) -> Statement:
        """The condition of every key that the filter selects, in no order."""
        text = (self._wanted.search or "").strip()
        terms = [*self._conditions()]
        match = ""
        if text:
            found = [_few(column) for column in _BEGUN if _BEGINNING.fullmatch(text)]
            if words := _terms(text):
                found.append("SELECT rowid FROM key_text WHERE key_text MATCH :match")
                match = " AND ".join(words)
            terms.append(f"serial IN ({' UNION ALL '.join(found or ['NULL'])})")
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        return where, {**self._values, "match": match, "first": text, "last": f"{text}\U0010ffff"}

    def by_order(self) -> Statement:
        index, by = SORTED_BY[self._wanted.sort]
        down = self._wanted.sort == "used"
        where, values = self.all_of()
        if self._wanted.after is not None:
            start = f"(SELECT {by}, serial FROM api_key WHERE id = :after)"  # noqa: S608 - no input
            if self._wanted.after_at is not None:
                start = "(SELECT :at, serial FROM api_key WHERE id = :after)"
            where = f"{where} {'AND' if where else 'WHERE'} ({by}, serial) {'<' if down else '>'} {start}"
        chosen = self._wanted.tenant is not None or (self._wanted.search or "").strip()
        source = "api_key" if chosen else f"api_key INDEXED BY {index}"
        way = "DESC" if down else "ASC"
        return f"{_SELECT} {source} {where} ORDER BY {by} {way}, serial {way} LIMIT :limit", values

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
        sql = f"{_SELECT} api_key {self._where(f'serial IN ({_few(column)})')}"
        return sql, {**self._values, "first": text, "last": f"{text}\U0010ffff"}

    def _facets(self) -> Iterator[str]:
        for column, letter in (("tenant", "t"), ("environment", "e")):
            if column in self._equal:
                yield letter + self._equal[column].encode("utf-8", "replace").hex()
        if self._status is not None:
            yield f"s{self._status}"
        if self._wanted.effective_status == "expired":
            yield "x1"
        if self._wanted.effective_status in ("retiring", "retired"):
            yield "r1"

    def _conditions(self) -> Iterator[str]:
        yield from (f"{column} = :{column}" for column in self._equal)
        if self._wanted.effective_status in _TIMES:
            yield _TIMES[self._wanted.effective_status]
        if self._wanted.unused_since is not None:
            yield _UNUSED

    def _where(self, *conditions: str, after: str = "serial") -> str:
        terms = [*conditions, *self._conditions()]
        if self._wanted.after is not None:
            terms.append(f"{after} < (SELECT serial FROM api_key WHERE id = :after)")  # noqa: S608 - no input
        where = f"WHERE {' AND '.join(terms)} " if terms else ""
        return f"{where}ORDER BY serial DESC LIMIT :limit"


def _terms(text: str) -> list[str]:
    """The words of a search. Only the last may be unfinished: the others match whole words only."""
    words = _WORD.findall(text)
    return [*(f'"{word}"' for word in words[:-1]), f'"{words[-1]}" *'] if words else []


def _few(column: str) -> str:
    """Serials of the keys whose `column` begins with the text, unless there are too many."""
    among = f"FROM api_key WHERE {column} >= :first AND {column} < :last"
    few = f"(SELECT count(*) FROM (SELECT 1 {among} LIMIT {MOST_BEGINNINGS + 1})) <= {MOST_BEGINNINGS}"  # noqa: S608 - no input
    return f"SELECT * FROM (SELECT serial {among} AND {few} LIMIT {MOST_BEGINNINGS})"  # noqa: S608 - no input
