"""A configuration file to one `Config`, or to everything that is wrong with it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType

from sidecar.config.build.config import Config, config_of
from sidecar.config.decoder import decode
from sidecar.config.document import Document
from sidecar.config.errors import Place, Report, refusal
from sidecar.config.yaml_tree import MAX_BYTES, Entries, Node, Scalar, read_nodes

# Addresses and URLs given on the command line or in the environment, put in the place of the file's.


NAMES = ("listen", "ops", "admin", "upstream", "store", "limiter")
"""What can be overridden: by `--listen` or `SIDECAR_LISTEN`, and so on."""

_SETTINGS = {"upstream": "url", "admin": "listen"}
"""Where the file says more than the address, what of it is the address."""


class Override(str):
    """A value that knows where it came from. A plain str came from the option of its name."""

    __slots__ = ("source",)

    source: str

    def __new__(cls, value: str, source: str) -> "Override":
        made = super().__new__(cls, value)
        made.source = source
        return made


def overrides_from(environ: Mapping[str, str]) -> dict[str, str]:
    """The `SIDECAR_LISTEN`, … that are set and not empty."""
    variables = {name: f"SIDECAR_{name.upper()}" for name in NAMES}
    return {
        name: Override(environ[variable], variable) for name, variable in variables.items() if environ.get(variable)
    }


def graft(root: Node, overrides: Mapping[str, str]) -> Node:
    """`root` with each override in place of what the file says; the settings beside an address stay."""
    if not isinstance(root, Entries):
        return root
    entries = list(root.entries)
    for name, value in overrides.items():
        _set(entries, name, Scalar(value, "str", Place(getattr(value, "source", f"--{name}")), literal=True))
    return Entries(tuple(entries), root.place)


def _set(entries: list[tuple[Scalar, Node]], name: str, new: Scalar) -> None:
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
    """The configuration in the file at `path`.

    overrides: `listen`, `ops`, `admin`, `upstream`, `store`, `limiter` that win over the file's; taken literally.
    environ: what `${VAR}` in the file stands for, and where SIDECAR_ADMIN_TOKEN may be.
    Raises ConfigError with every problem at once. Blocks: it reads the file.
    """
    text = _read(path)
    root = graft(read_nodes(text, path), overrides)
    report = Report(root.place)
    document = decode(root, Document, report, environ)
    if document is None:
        report.close()
    config = config_of(path, document or Document(), report, environ)
    report.close()
    return replace(config, sha256=sha256(text).hexdigest())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise refusal(Place(path), f"cannot be read: {reason or 'not a path'}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe that nobody writes to would never end; read at once, it is empty."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor
