"""Loads a configuration file: one `Config`, or one error with everything that is wrong."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType

from sidecar.config.build.config import Config, config_of
from sidecar.config.decoder import decode
from sidecar.config.document import Document
from sidecar.config.errors import ConfigError, Place, Problem, Report, unreadable
from sidecar.config.yaml_tree import MAX_BYTES, Entries, Items, Node, Scalar, read_nodes
from sidecar.core.apikey import without_keys

# Secrets as files, as Docker and Kubernetes mount them.


_OURS = "SIDECAR_"
_MOST_SECRET_BYTES = 65_536


class Environment(Mapping[str, str]):
    """Environment variables, in which NAME_FILE gives NAME the content of a file, without its final newline.

    A file is read each time its variable is, so that a reload finds a new one. Reading a variable raises ValueError,
    without any value, if its file is empty or unreadable, or if one of our variables is given in both ways.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __getitem__(self, name: str) -> str:
        file = self._environ.get(f"{name}_FILE")
        if not file:
            return self._environ[name]
        if not name.startswith(_OURS) and name in self._environ:
            return self._environ[name]  # NAME_FILE may belong to another program, such as SSL_CERT_FILE.
        if self._environ.get(name):
            raise ValueError(f"{name} and {name}_FILE are both set: unset one of them")
        return _content(f"{name}_FILE", file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)


def _content(variable: str, file: str) -> str:
    try:
        with open(file, "rb", opener=_without_waiting) as opened:
            found = opened.read(_MOST_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
        raise ValueError(f"the file that {variable} names cannot be read: {reason}") from None
    if len(found) > _MOST_SECRET_BYTES:
        raise ValueError(f"the file that {variable} names is larger than any secret")
    text = found.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    if not text:
        # A secret that was never filled in: without this, the admin listener would silently stay closed.
        raise ValueError(f"the file that {variable} names is empty")
    return text


# Overrides: addresses and URLs from the command line or the environment replace those of the file.


NAMES = ("listen", "ops", "admin", "upstream", "store", "limiter", "workers")
"""The options that `--listen` or `SIDECAR_LISTEN`, and so on, override."""

_SETTINGS = {"upstream": "url", "admin": "listen", "store": "url", "limiter": "url"}
"""Sections that may be a mapping: the key of the address in it."""
_LISTENERS = frozenset({"listen", "ops", "admin"})
_NUMBERS = frozenset({"workers"})
_BETWEEN_ADDRESSES = re.compile(r",\s*(?=unix:|[^,/]*:[0-9]+(?:,|$))")
"""A comma, except in the path of a Unix socket."""


class Override(str):
    """A value with its source. A plain str is from the command-line option of its name."""

    __slots__ = ("source",)

    source: str

    def __new__(cls, value: str, source: str) -> "Override":
        override = super().__new__(cls, value)
        override.source = source
        return override


def overrides_from(environ: Mapping[str, str]) -> dict[str, str]:
    """The `SIDECAR_LISTEN`, … that are set and not empty."""
    variables = {name: f"SIDECAR_{name.upper()}" for name in NAMES}
    return {
        name: Override(environ[variable], variable) for name, variable in variables.items() if environ.get(variable)
    }


def apply_overrides(root: Node, overrides: Mapping[str, str]) -> Node:
    """`root` with overrides instead of the file's values; the options next to an address stay."""
    if not isinstance(root, Entries):
        return root
    entries = list(root.entries)
    for name, value in overrides.items():
        _set(entries, name, _node(name, value))
    return Entries(tuple(entries), root.place)


def _node(name: str, value: str) -> Node:
    """The addresses of a listener are a list if there are several, separated by commas."""
    place = Place(getattr(value, "source", f"--{name}"))
    texts = _BETWEEN_ADDRESSES.split(value) if name in _LISTENERS else [value]
    tag = "var" if name in _NUMBERS else "str"
    items = tuple(Scalar(text, tag, place, literal=True) for text in texts)
    return items[0] if len(items) == 1 else Items(items, place)


def _set(entries: list[tuple[Scalar, Node]], name: str, new: Node) -> None:
    at = next((index for index, (key, _) in enumerate(entries) if key.text == name), None)
    if at is None:
        entries.append((Scalar(name, "str", new.place), new))
        return
    key, old = entries[at]
    if name in _SETTINGS and isinstance(old, Entries):
        settings = list(old.entries)
        _set(settings, _SETTINGS[name], new)
        entries[at] = (key, Entries(tuple(settings), old.place))
    else:
        entries[at] = (key, new)


_NONE: Mapping[str, str] = MappingProxyType({})


def load(path: str, *, overrides: Mapping[str, str] = _NONE, environ: Mapping[str, str]) -> Config:
    """Loads the file at `path`. Raises ConfigError with every problem. Blocks: it reads the file.

    overrides: values of NAMES that replace the file's; a `${VAR}` in them is text.
    environ: the values of `${VAR}` in the file, and SIDECAR_ADMIN_TOKEN; each may be in a file (`Environment`). No
    message repeats one of them.
    """
    variables = Variables(Environment(environ))
    try:
        config = _load(path, overrides, variables)
    except ConfigError as error:
        raise ConfigError(map(variables.without_secrets, error.problems)) from None
    warnings, notes = (tuple(map(variables.without_secrets, told)) for told in (config.warnings, config.notes))
    return replace(config, warnings=warnings, notes=notes)


def _load(path: str, overrides: Mapping[str, str], environ: Mapping[str, str]) -> Config:
    text = read_file(path)
    root = apply_overrides(read_nodes(text, path), overrides)
    report = Report(root.place)
    document = decode(root, Document, report, environ)
    if document is None:
        report.close()
    config = config_of(path, document or Document(), report, environ)
    report.close()
    return replace(config, sha256=sha256(text).hexdigest(), warnings=report.warnings, notes=report.notes)


def read_file(path: str, *, most: int = MAX_BYTES) -> bytes:
    """The file's bytes, at most one more than `most`. Raises ConfigError."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise unreadable(Place(path), f"cannot be read: {reason or 'not a path'}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe without a writer would block for ever; opened this way, it is empty."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


_WORD = re.compile(r"'([^']+)'|[^\s',;()]+")
"""A part of a value that a message repeats is in quotes, or is a separate word."""
_LEAST_QUOTED = 3
_LEAST_WORD = 8
"""Shorter words are our own: `must be true or false` reveals nothing about a value that contains `true`."""
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

    def without_secrets(self, problem: Problem) -> Problem:
        """The problem with `${NAME}` for each word of its message that holds a value that was read, or is a part.

        What may be a key, pasted into the wrong place, is shortened.
        """
        # Values first: of a value that looks like a key, not even the beginning is shown.
        message = without_keys(_WORD.sub(self._named, problem.message))
        return replace(problem, path=without_keys(problem.path), message=message)

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
