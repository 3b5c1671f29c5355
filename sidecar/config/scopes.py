"""The `scopes` section, and the scopes that other sections name."""

from collections.abc import Sequence

from sidecar.config.document import Document, ScopeEntry
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.core.model import EVERY
from sidecar.core.scopes import Catalogue, Scope


def catalogue_of(document: Document, report: Report) -> Catalogue:
    """The catalogue; a scope whose entry is wrong is in it by name, so that what names it is not wrong as well."""
    written = document.scopes or {}
    scopes = {name: Scope(name=name) for name in report.names(("scopes",))}
    for name, entry in written.items():
        match entry:
            case ScopeEntry():
                scopes[name] = Scope(name=name, description=entry.description, includes=entry.includes)
            case _:
                scopes[name] = Scope(name=name, description=entry or "")
    catalogue = Catalogue(scopes.values())
    for name, entry in written.items():
        if isinstance(entry, ScopeEntry):
            check_granted(entry.includes, ("scopes", name, "includes"), catalogue, report)
    return catalogue


def check_granted(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> None:
    """Reports each name at `path` that stands for no scope."""
    for at, name in report.numbered(path, names):
        if catalogue.unknown([name]):
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")


def required(names: Sequence[str], path: Path, catalogue: Catalogue, report: Report) -> frozenset[str]:
    """The scopes that a route names, one by one: a wildcard could be read as any of them or as every one."""
    for at, name in report.numbered(path, names):
        if name == EVERY or name.endswith(":*"):
            report.problem(at, f"'{name}' can be granted to a key, but not be required: name the scopes")
        elif name not in catalogue.scopes:
            report.problem(at, f"unknown scope '{name}'{did_you_mean(name, catalogue.scopes)}")
    return frozenset(names)
