"""The `keys.imported` section: keys made elsewhere."""

from collections.abc import Iterable

from sidecar.config.document import ImportedEntry, KeysEntry, SourceEntry, given
from sidecar.config.errors import Path, Report
from sidecar.core.apikey import ForeignKeys

_SECTION = ("keys", "imported")


def imported_of(entry: KeysEntry, report: Report) -> tuple[ForeignKeys, ...]:
    found: dict[ForeignKeys, None] = {}
    for at, imported in report.numbered(_SECTION, entry.imported):
        _check_prefix(imported.prefix, at, entry, report)
        _check_pepper(imported, at, report)
        pepper = given(imported.pepper)
        keys = ForeignKeys(
            prefix=imported.prefix,
            hash=imported.hash,
            pepper=pepper.encode("utf-8", "surrogatepass") if pepper else None,
        )
        if keys in found:
            report.problem(at, "stands here twice")
        found[keys] = None
    return tuple(found)


def _check_prefix(prefix: str, at: Path, entry: KeysEntry, report: Report) -> None:
    path = (*at, "prefix")
    if not prefix:
        if _headers(entry.from_) & _headers(entry.pass_through):
            report.problem(path, "is empty, so that nothing could pass where keys.pass_through lets it: name a prefix")
        return
    for environment, own in entry.environments.items():
        if prefix.startswith(own) or own.startswith(prefix):
            report.problem(path, f"overlaps the prefix of keys of the environment '{environment}'")


def _check_pepper(imported: ImportedEntry, at: Path, report: Report) -> None:
    path = (*at, "pepper")
    if imported.hash == "sha256":
        if given(imported.pepper) is not None:
            report.problem(path, "sha256 has none: say in `hash` how the pepper is used, or leave it out")
    elif not given(imported.pepper) and report.sound(path):
        report.problem(path, f"{imported.hash} needs one: write pepper: ${{VARIABLE}} and set the variable")


def _headers(sources: Iterable[SourceEntry]) -> set[tuple[str, str]]:
    """Folded names and schemes."""
    headers = ((given(source.header), given(source.scheme) or "") for source in sources)
    return {(name.lower(), scheme.lower()) for name, scheme in headers if name is not None}
