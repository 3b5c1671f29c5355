"""Hashes the plaintext keys of an imported list, before anything else is done with its lines."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sidecar.core.apikey import Hasher, pasted
from sidecar.keys.transfer.fields import InvalidLine, Origin
from sidecar.keys.transfer.formats import BadLine, Entry
from sidecar.keys.transfer.products import Fields
from sidecar.keys.validation import KeyRules

_KEY: Final = re.compile(r"[!-~]{1,500}")
_SHOWN: Final = 4
_LONGEST_PREFIX: Final = 32
_NO_PLAINTEXT: Final = (
    "holds the key itself, not its hash: give --hash-plaintext, and each key is hashed as it is read and stored nowhere"
)


class Plaintexts:
    """Replaces a key by its hash, in the scheme by which the key will be looked up."""

    def __init__(self, rules: KeyRules, origin: Origin, hasher: Hasher) -> None:
        self._rules, self._origin, self._hasher = rules, origin, hasher

    def hashed(self, fields: Mapping[str, object]) -> Fields:
        """Raises InvalidLine, which repeats no part of the key."""
        rest = {name: value for name, value in fields.items() if name != "key"}
        if given := [name for name in ("hash", "algorithm") if rest.get(name) is not None]:
            raise InvalidLine([f"key: stands beside {' and '.join(given)}: give the key, or its hash"])
        text = fields["key"]
        if not isinstance(text, str) or not _KEY.fullmatch(text) or pasted(text) != text:
            raise InvalidLine(["key: must be 1 to 500 printable ASCII characters, without spaces and quotes around it"])
        if not text.startswith(str(rest.get("prefix") or "")):
            raise InvalidLine(["prefix: is not what the key begins with: correct it, or leave it out"])
        return {"prefix": self._prefix(text), **rest, **self._digest(text)}

    def _digest(self, text: str) -> Fields:
        if not self._is_imitation(text):
            digest, algorithm = self._hasher.for_new(text)
            return {"hash": digest.hex(), "algorithm": algorithm}
        # Named by no algorithm: it begins as our keys do, and would be taken for one of them.
        entry = max(self._matching(text), key=lambda keys: len(keys.prefix), default=None)
        return {"hash": "0" * 64 if entry is None else entry.digest(text.encode()).hex()}

    def _is_imitation(self, text: str) -> bool:
        prefixes = self._rules.environments.values()
        return text.startswith(tuple(prefixes)) and self._rules.format.check(text, prefixes) is None

    def _matching(self, text: str) -> list[Any]:
        wanted = self._origin.hash
        return [keys for keys in self._origin.foreign if text.startswith(keys.prefix) and wanted in (None, keys.hash)]

    def _prefix(self, text: str) -> str:
        """The stored prefix: up to four characters after the known one, and at most a quarter of the rest."""
        known = max((prefix for prefix in self._origin.prefixes() if text.startswith(prefix)), key=len, default="")
        shown = min(_SHOWN, (len(text) - len(known)) // 4)
        return text[: max(min(len(known) + shown, _LONGEST_PREFIX), 1)]


def hashed(entries: Iterable[Entry | BadLine], plaintexts: Plaintexts | None) -> Iterator[Entry | BadLine]:
    """Yield entries without any key in them. Without `plaintexts`, stop at the first entry that has a key."""
    for entry in entries:
        if isinstance(entry, BadLine) or "key" not in entry.fields:
            keyless = plaintexts is not None and isinstance(entry, Entry) and "hash" not in entry.fields
            yield BadLine(line=entry.line, problem="key: is required") if keyless else entry
        elif plaintexts is None:
            yield BadLine(line=entry.line, problem=_NO_PLAINTEXT)
            return
        else:
            try:
                yield Entry(line=entry.line, fields=plaintexts.hashed(entry.fields))
            except InvalidLine as error:
                yield BadLine(line=entry.line, problem="; ".join(error.problems))
