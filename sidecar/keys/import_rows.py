"""Lines of an imported file as rows of the store, quickly for those that are like one before them."""

import re
from collections.abc import Hashable
from typing import Any, Final

from sidecar.keys.new_rows import Alike, NewRow, Own, new_row
from sidecar.keys.transfer.fields import Fields, LineRules, is_shown, moment
from sidecar.keys.validation import is_metadata, is_name, is_tenant, is_writable

_KINDS: Final = 10_000
"""Most kinds of keys to remember."""


class Rows:
    """Makes rows of fields.

    LineRules alone says what is wrong, and looks at the first line of each kind. Where nothing was wrong with it, a
    line of the same environment, scopes, plan, quotas, algorithm and beginning needs but its other fields looked at.
    """

    def __init__(self, rules: LineRules) -> None:
        self._rules = rules
        self._kinds: dict[Hashable, Alike] = {}
        # The longest beginning tells all that fit: the others are beginnings of it.
        known = sorted(filter(None, rules.origin.prefixes()), key=len, reverse=True)
        self._beginning = re.compile(f"{'|'.join(map(re.escape, known))}|")

    def row_of(self, fields: Fields) -> NewRow:
        """Raises UnfitLine."""
        kind = self._kind_of(fields)
        alike = self._kinds.get(kind) if kind else None
        own = self._own(fields, alike.prefix) if alike else None
        if alike and own:
            return alike.row(own)
        key = self._rules.key_of(fields)
        if kind and len(self._kinds) < _KINDS:
            self._kinds[kind] = Alike(key)
        return new_row(key)

    def _kind_of(self, fields: Fields) -> Hashable:
        """What decides on all that keys share; None for a line that needs a closer look."""
        get: Any = fields.get
        prefix, scopes, quotas = get("prefix"), get("scopes"), get("quotas")
        if not (scopes is None or scopes.__class__ is list) or not _are_limits(quotas):
            return None
        try:
            begins = None if prefix is None else self._beginning.match(prefix)[0]  # type: ignore[index]
            granted = None if scopes is None else tuple(scopes)
            limits = tuple(quotas.items()) if quotas else None
            kind = begins, granted, limits, get("environment"), get("plan"), get("algorithm")
            hash(kind)
        except TypeError:
            return None
        return kind

    def _own(self, fields: Fields, prefix: str) -> Own | None:
        """What a line alone says of its key, or None where that needs a closer look. `prefix` where it gives none."""
        get: Any = fields.get
        given, metadata = get("prefix"), get("metadata")
        problems: list[str] = []
        try:
            own = Own(
                id=self._rules.id_of(get("id"), problems),
                name=get("name"),
                prefix=prefix if given is None else given,
                digest=self._rules.digest(get("hash"), given, problems),
                tenant=get("tenant"),
                metadata={} if metadata is None else metadata,
                created_at=self._rules.created_at(get("created_at"), problems),
                expires_at=moment(get("expires_at"), "expires_at", problems),
            )
            return own if not problems and self._fits(own, prefix) else None
        except (TypeError, AttributeError):
            return None

    def _fits(self, own: Own, prefix: str) -> bool:
        until = own.expires_at
        return (
            is_name(own.name)
            and (own.tenant is None or is_tenant(own.tenant))
            and is_metadata(own.metadata)
            and (own.prefix is prefix or is_shown(own.prefix))
            and (until is None or (self._rules.now < until and is_writable(until)))
        )


def _are_limits(quotas: Any) -> bool:
    """Whether all are whole numbers; True, which is found as 1 is, is none."""
    return quotas is None or (quotas.__class__ is dict and all(type(limit) is int for limit in quotas.values()))
