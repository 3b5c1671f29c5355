"""Pages of keys in PostgreSQL, whose planner chooses among the indexes of schema.py by its statistics.

Newest first, keys are read in order of `serial` from the index of a filter or of the table, up to the end of the page;
rare words are looked up in an index, and ended keys by their time. In any other order, keys are read in the order of
its index.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from sidecar.keys.ports import KeyFilter
from sidecar.keys.records import COLUMNS
from sidecar.store.postgresql.schema import SCHEMA, SORTED_BY

MOST_BEGINNINGS: Final = 10_000
"""A search term with which more ids or stored prefixes than this begin is too common to search for in them."""

_SELECT: Final = f"SELECT serial, {', '.join(COLUMNS)} FROM api_key"  # noqa: S608 - column names of our own
_BEGINNING: Final = re.compile(r"[A-Za-z0-9_-]{3,100}")
_BEGUN: Final = ("id", "prefix")
_WORD: Final = re.compile(r"[^\W_]")
_TIMES: Final = {
    "active": ("(expires_at IS NULL OR expires_at > ?) AND (retires_at IS NULL OR retires_at > ?)", 2),
    "retiring": ("retires_at IS NOT NULL AND retires_at > ? AND (expires_at IS NULL OR expires_at > ?)", 2),
    "expired": ("expires_at IS NOT NULL AND expires_at <= ?", 1),
    "retired": ("retires_at IS NOT NULL AND retires_at <= ? AND (expires_at IS NULL OR expires_at > ?)", 2),
}
"""The condition on an active key's times, and how often the current time occurs in it."""
_BY_TIME: Final = ("retiring", "expired", "retired")
"""These are read from the indexes of their times, and sorted."""
_MATCH: Final = f"words @@ {SCHEMA}.query_of({SCHEMA}.words_of(?))"

Statement = tuple[str, tuple[Any, ...]]


def page_statements(wanted: KeyFilter, now: int) -> Iterator[Statement]:
    """Statements whose rows (`serial`, then COLUMNS) together contain the page. `now` in microseconds."""
    page, text = _Page(wanted, now), (wanted.search or "").strip()
    if wanted.sort != "created":
        yield page.by_order(text)
    elif not text:
        yield page.by_age()
    else:
        for condition in _found_by(text):
            yield page.by_age(condition)


def count_statement(wanted: KeyFilter, now: int, most: int) -> Statement:
    """One row: how many keys the filter selects, counted up to `most`."""
    where, values = _where(_Page(wanted, now).selected((wanted.search or "").strip()))
    return f"SELECT count(*) FROM (SELECT 1 FROM api_key{where} LIMIT {most}) AS counted", values  # noqa: S608 - no input


class _Page:
    """Builds the statements of one page."""

    def __init__(self, wanted: KeyFilter, now: int) -> None:
        self._wanted, self._now = wanted, now

    def by_age(self, *conditions: Statement) -> Statement:
        terms = [*conditions, *self._filters()]
        by = self._age()
        if self._wanted.after is not None:
            terms.append((f"{by} < (SELECT {by} FROM api_key WHERE id = ?)", (self._wanted.after,)))  # noqa: S608 - no input
        where, values = _where(terms)
        return f"{_SELECT}{where} ORDER BY {by} DESC LIMIT ?", (*values, self._wanted.limit)

    def _age(self) -> str:
        """The serial, by which keys are sorted; as an expression where the planner must not read all keys in order.

        Ended keys are usually old, and a tenant may have no key in an environment: nearly every key would be read
        before the page is full. The planner does not expect that, because it assumes independent columns.
        """
        wanted = self._wanted
        among = wanted.effective_status in _BY_TIME or (wanted.tenant is not None and wanted.environment is not None)
        return "serial + 0" if among else "serial"

    def by_order(self, text: str) -> Statement:
        by, down = SORTED_BY[self._wanted.sort], self._wanted.sort == "used"
        terms = self.selected(text)
        if self._wanted.after is not None:
            terms.append(self._after(by, "<" if down else ">"))
        where, values = _where(terms)
        way = "DESC" if down else "ASC"
        return f"{_SELECT}{where} ORDER BY {by} {way}, serial {way} LIMIT ?", (*values, self._wanted.limit)

    def selected(self, text: str) -> list[Statement]:
        """The conditions of every key that the filter selects."""
        terms = [*self._filters()]
        if text:
            found = [*_found_by(text)]
            sql = " OR ".join(sql for sql, _ in found) or "false"
            terms.append((f"({sql})", tuple(value for _, values in found for value in values)))
        return terms

    def _after(self, by: str, beyond: str) -> Statement:
        # Two values, because PostgreSQL does not use the index to compare with a row of a subquery.
        of, after, at = "FROM api_key WHERE id = ?", self._wanted.after, self._wanted.after_at
        start, values = (f"(SELECT {by} {of})", (after,)) if at is None else ("?::bigint", (at,))
        return f"({by}, serial) {beyond} ({start}, (SELECT serial {of}))", (*values, after)

    def _filters(self) -> Iterator[Statement]:
        wanted = self._wanted
        for column, value in (("tenant", wanted.tenant), ("environment", wanted.environment)):
            if value is not None:
                yield f"{column} = ?", (value,)
        if wanted.effective_status in _TIMES:
            times, number = _TIMES[wanted.effective_status]
            yield f"status = 'active' AND {times}", (self._now,) * number
        elif wanted.effective_status is not None:
            yield "status = ?", (wanted.effective_status,)
        if wanted.unused_since is not None:
            yield "coalesce(last_used_at, created_at) <= ?", (wanted.unused_since,)


def _where(terms: list[Statement]) -> Statement:
    values = tuple(value for _, values in terms for value in values)
    return f" WHERE {' AND '.join(sql for sql, _ in terms)}" if terms else "", values


def _found_by(text: str) -> Iterator[Statement]:
    """Conditions, of which a matching key fulfils at least one."""
    if _WORD.search(text):
        yield _MATCH, (text,)
    if _BEGINNING.fullmatch(text):
        for column in _BEGUN:
            yield _few(column), (text, f"{text}\U0010ffff")


def _few(column: str) -> str:
    """Whether the key's `column` begins with the text, unless there are too many such keys."""
    among = f"SELECT serial FROM api_key WHERE {column} >= ? AND {column} < ? LIMIT {MOST_BEGINNINGS + 1}"  # noqa: S608 - no input
    counted = f"SELECT serial, count(*) OVER () AS number FROM ({among}) AS begun"  # noqa: S608 - no input
    return f"serial = ANY(ARRAY(SELECT serial FROM ({counted}) AS few WHERE number <= {MOST_BEGINNINGS}))"  # noqa: S608 - no input
