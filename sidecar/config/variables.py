"""The variables that a configuration has read, and messages without their values: many a value is a secret."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from sidecar.config.errors import Problem

_WORD = re.compile(r"'([^']+)'|[^\s',;()]+")
"""What a message repeats of a value stands in quotes, or is a word by itself."""
_LEAST_QUOTED = 3
_LEAST_WORD = 8
"""Shorter words are our own ones: `must be true or false` says nothing of a value that holds `true`."""
_LEAST_VALUE = 4


class Variables(Mapping[str, str]):
    """The variables of `environ`, and which of them were read."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._read: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        value = self._environ[name]
        self._read[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)

    def without_values(self, problem: Problem) -> Problem:
        """The problem with `${NAME}` for each word of its message that holds a value that was read, or is a part."""
        return replace(problem, message=_WORD.sub(self._named, problem.message))

    def _named(self, found: re.Match[str]) -> str:
        text, quoted = found[1] or found[0], found[1] is not None
        if len(text) < (_LEAST_QUOTED if quoted else _LEAST_WORD):
            return found[0]
        folded = text.casefold()
        for name, value in self._read.items():
            other = value.casefold()
            if folded in other or (len(other) >= _LEAST_VALUE and other in folded):
                return f"'${{{name}}}'" if quoted else f"${{{name}}}"
        return found[0]
