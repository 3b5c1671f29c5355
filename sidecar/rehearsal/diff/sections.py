"""Finds changes outside of routes: scopes, quotas, plans, identity headers, upstreams, and how keys are presented.

Values are shown if they say who may do what. For all other options only the name is shown: some contain secrets.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, Final, Literal

import msgspec

from sidecar.config.build.config import Config
from sidecar.config.document import UpstreamSettings
from sidecar.config.errors import ConfigError
from sidecar.config.policy import KeySettings
from sidecar.config.yaml_tree import Entries, Node, read_nodes
from sidecar.core.model import Quota, Source
from sidecar.gate.explain import routes_for_scope
from sidecar.rehearsal.diff.changes import Change, Detail, effects, shown


class Places:
    """The places of options in a file. Unknown if it is not a regular file, such as a pipe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._root: Node | None = None
        if os.path.isfile(path):
            try:
                with open(path, "rb") as file:
                    self._root = read_nodes(file.read(), path)
            except (OSError, ConfigError):
                pass

    def of(self, *names: str) -> str:
        """`file:line` of the key, or of the nearest one above it."""
        node, line = self._root, 0
        for name in names:
            entries = node.entries if isinstance(node, Entries) else ()
            found = next(((key, value) for key, value in entries if key.text == name), None)
            if found is None:
                break
            line, node = found[0].place.line, found[1]
        return f"{self._path}:{line}" if line else self._path


class Sections:
    """Compares the sections of two configurations."""

    def __init__(self, old: Config, new: Config) -> None:
        self._old, self._new = old, new
        self._places = Places(old.path), Places(new.path)

    def changes(self) -> Iterator[Change]:
        old, new = self._old, self._new
        yield from self._scopes()
        yield from self._named(("quotas",), old.quotas, new.quotas, _of_quota)
        yield from self._named(("plans",), old.plans, new.plans, _of_plan)
        yield from self._identity()
        yield from self._keys()
        yield from self._upstreams()
        yield from self._paths()
        yield from self._others()

    def _change(
        self,
        path: tuple[str, ...],
        kind: Literal["added", "removed", "changed"] = "changed",
        details: tuple[Detail, ...] = (),
        *,
        opens: bool = False,
        closes: bool = False,
    ) -> Change:
        old, new = (places.of(*path) for places in self._places)
        return Change(
            section=path[0],
            what=".".join(path),
            kind=kind,
            effects=effects(opens=opens, closes=closes),
            details=details,
            old="" if kind == "added" else old,
            new="" if kind == "removed" else new,
        )

    def _named(
        self,
        path: tuple[str, ...],
        old: Mapping[str, Any],
        new: Mapping[str, Any],
        described: Callable[[Any], Mapping[str, str]],
    ) -> Iterator[Change]:
        """described: the options of an entry that are shown, by name."""
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new:
                yield self._change((*path, name), "removed", _whole(described(old[name]), before=True))
            elif name not in old:
                yield self._change((*path, name), "added", _whole(described(new[name]), before=False))
            elif old[name] != new[name]:
                yield self._change((*path, name), "changed", _parts(described(old[name]), described(new[name])))

    def _scopes(self) -> Iterator[Change]:
        """Compares scopes by what they include, and their mode. The changes of routes say whom that lets in."""
        old, new = (
            {
                name: (config.catalogue.expand([name]) - {name}, scope.mode)
                for name, scope in config.catalogue.scopes.items()
            }
            for config in (self._old, self._new)
        )
        for change in self._named(("scopes",), old, new, _of_scope):
            opened = self._opened_by(change.what.partition(".")[2]) if change.kind == "added" else ""
            details = (*change.details, *((Detail("opens", after=opened),) if opened else ()))
            yield replace(change, details=details)

    def _opened_by(self, scope: str) -> str:
        names = [route.name for route in routes_for_scope(self._new, scope)]
        more = len(names) - _NAMED
        return ", ".join([*names[:_NAMED], *([f"and {more} more"] if more > 0 else [])])

    def _identity(self) -> Iterator[Change]:
        old, new = self._old.identity, self._new.identity
        before, after = (
            dict(sorted((name.title(), text) for name, text in side.headers.items())) for side in (old, new)
        )
        yield from self._named(("identity", "headers"), before, after, lambda text: {"": _template(text)})
        for name in ("strip", "keep"):
            mine, theirs = ({entry.lower() for entry in getattr(side, name)} for side in (old, new))
            if mine != theirs:
                yield self._change(("identity", name), details=(Detail("", shown(mine), shown(theirs)),))
        if old.request_id.lower() != new.request_id.lower():
            yield self._change(("identity", "request_id"), details=(Detail("", old.request_id, new.request_id),))

    def _upstreams(self) -> Iterator[Change]:
        old, new = self._old.every_upstream, self._new.every_upstream
        yield from self._named((), {"upstream": old[None]}, {"upstream": new[None]}, _of_upstream)
        yield from self._named(("upstreams",), self._old.upstreams, self._new.upstreams, _of_upstream)

    # Options that decide which credentials are found, and how a path is read.

    def _keys(self) -> Iterator[Change]:
        old, new = self._old.keys, self._new.keys
        for name, mine, theirs in (
            ("from", _places(old.sources), _places(new.sources)),
            ("pass_through", _places(old.pass_through), _places(new.pass_through)),
            ("environments", _environments(old), _environments(new)),
            ("imported", _imported(old), _imported(new)),
            ("observe", frozenset(old.observe), frozenset(new.observe)),
        ):
            if mine != theirs:
                details = (Detail("", shown(mine) or "none", shown(theirs) or "none"),)
                opens, closes = bool(theirs - mine), bool(mine - theirs)
                yield self._change(("keys", name), details=details, opens=opens, closes=closes)
            elif name == "imported" and set(old.imported) != set(new.imported):
                yield self._change(("keys", name), details=(Detail("", after="another pepper"),), closes=True)
        for option, field, stricter in _OF_KEYS:
            before, after = getattr(old, field), getattr(new, field)
            if before != after:
                details = (Detail("", shown(before), shown(after)),)
                opens, closes = (stricter is not None and stricter == value for value in (before, after))
                form = field in _FORM
                yield self._change(("keys", option), details=details, opens=opens, closes=closes or form)
        names = [name for name in _differing(old, new) if name not in _COMPARED_KEYS]
        if names:
            yield self._change(("keys",), details=(Detail("", after=", ".join(names)),))

    def _paths(self) -> Iterator[Change]:
        for name, stricter in (("case_sensitive", True), ("encoded_slash", None), ("colon", "verb")):
            before, after = getattr(self._old, name), getattr(self._new, name)
            if before != after:
                opens, closes = (stricter is None or stricter == value for value in (before, after))
                details = (Detail("", shown(before), shown(after)),)
                yield self._change(("paths", name), details=details, opens=opens, closes=closes)

    def _others(self) -> Iterator[Change]:
        """Compares by name only, except for the mode, which is not secret."""
        for field in fields(Config):
            before, after = getattr(self._old, field.name), getattr(self._new, field.name)
            if field.compare and field.name not in _COMPARED and before != after:
                path = _RENAMED.get(field.name, (field.name,))
                names = _differing(before, after)
                details = (Detail("", after=", ".join(names)),) if names else ()
                yield self._change(path, details=(Detail("", before, after),) if path == ("mode",) else details)


_COMPARED: Final = frozenset(
    {
        "path", "catalogue", "quotas", "plans", "routes", "unmatched", "identity", "keys", "upstream", "upstreams",
        "case_sensitive", "encoded_slash", "colon",
    }
)  # fmt: skip
_RENAMED: Final = {
    "default_error": ("errors", "default"),
    "store_usage": ("store", "usage"),
    "store_grace": ("store", "grace"),
    "method_not_allowed": ("unmatched", "method_not_allowed"),
}
_OF_KEYS: Final[tuple[tuple[str, str, object], ...]] = (
    ("spaces_after_scheme", "spaces_after_scheme", "one"),
    ("copies", "copies", "refuse"),
    ("pass_through_with_key", "beside_key", None),
    ("forward_credential", "forward_credential", None),
    ("length", "length", None),
    ("checksum", "checksum_length", None),
)
"""Option, field, and the stricter value."""
_FORM: Final = frozenset({"length", "checksum_length"})
"""Keys that do not have this form are not looked up."""
_COMPARED_KEYS: Final = frozenset(
    {"sources", "pass_through", "environments", "imported", "observe", *(field for _, field, _ in _OF_KEYS)}
)
_NAMED: Final = 5
"""The number of routes that are named if there may be hundreds."""
_FIXED: Final = re.compile(r"[^{}\W_]+(?![^{]*\})")


def _template(text: str) -> str:
    """Shows placeholders, and hides fixed text: it may be a secret that the upstream checks."""
    return _FIXED.sub("…", text)


def _whole(options: Mapping[str, str], *, before: bool) -> tuple[Detail, ...]:
    text = ", ".join(f"{option} {value}".lstrip() for option, value in options.items())
    return (Detail("", before=text) if before else Detail("", after=text),) if text else ()


def _parts(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Detail, ...]:
    options = [*before, *(option for option in after if option not in before)]
    pairs = [Detail(option, before.get(option, "none"), after.get(option, "none")) for option in options]
    return tuple(pair for pair in pairs if pair.before != pair.after) or (Detail("", after="another fixed text"),)


def _differing(before: object, after: object) -> list[str]:
    """The names of the options that differ in two sections."""
    if not isinstance(before, msgspec.Struct) or type(before) is not type(after):
        return []
    return [name for name in before.__struct_fields__ if getattr(before, name) != getattr(after, name)]


def _of_quota(quota: Quota) -> Mapping[str, str]:
    entries: dict[str, object] = {
        "limit": quota.limit,
        "per": quota.period,
        "window": quota.window,
        "burst": quota.burst,
    }
    entries |= {"mode": quota.mode, "by": tuple(subject.value for subject in quota.by), "only": quota.only}
    return {name: shown(value) for name, value in entries.items() if value is not None}


def _of_scope(scope: tuple[frozenset[str], str | None]) -> Mapping[str, str]:
    held, mode = scope
    return {"includes": shown(held) or "nothing", **({} if mode is None else {"mode": mode})}


def _of_plan(plan: Mapping[str, int | None]) -> Mapping[str, str]:
    return {quota: "unlimited" if limit is None else str(limit) for quota, limit in plan.items()}


def _of_upstream(settings: UpstreamSettings) -> Mapping[str, str]:
    url = settings.url
    entries = {"url": f"{'https' if url.tls else 'http'}://{url.address}"}
    values = {name: getattr(settings, name) for name in settings.__struct_fields__ if name not in ("url", "tls")}
    if settings.tls is not None:
        values |= {f"tls.{name}": getattr(settings.tls, name) for name in settings.tls.__struct_fields__}
    return entries | {name: shown(value) for name, value in values.items()}


def _places(sources: tuple[Source, ...]) -> frozenset[str]:
    return frozenset(map(_place, sources))


def _place(source: Source) -> str:
    name = source.name.lower() if source.kind == "header" else source.name
    extra = [word for word in ((source.scheme or "").lower(), source.part or "") if word]
    return " ".join([source.kind, name, *extra])


def _environments(keys: KeySettings) -> frozenset[str]:
    aliases = {f"{alias} for {name} in paths" for alias, name in keys.environment_aliases.items()}
    return frozenset({f"{name}: {prefix}" for name, prefix in keys.environments.items()} | aliases)


def _imported(keys: KeySettings) -> frozenset[str]:
    return frozenset(f"{foreign.prefix or 'any prefix'} ({foreign.hash})" for foreign in keys.imported)
