"""Addresses and URLs given on the command line or in the environment, put in the place of the file's."""

from collections.abc import Mapping

from sidecar.config.errors import Place
from sidecar.config.yaml_tree import Entries, Node, Scalar

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
