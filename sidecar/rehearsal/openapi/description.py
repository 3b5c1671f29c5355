"""An OpenAPI document (2.0, 3.0, 3.1, 3.2; YAML or JSON) as operations with their requirements.

It reads paths, methods, `security`, tags and servers, and `$ref` within the document. It ignores webhooks and
callbacks, which the service itself sends, and schemas, examples and responses, which do not say who may call.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product

from sidecar.config.errors import ConfigError, Place, Problem, did_you_mean, unreadable
from sidecar.config.load import read_file
from sidecar.config.outline import MOST_BYTES, Outline, read_outline
from sidecar.config.yaml_tree import Entries, Node, Scalar
from sidecar.core.routing import NEVER_ROUTED, is_token, known_spelling
from sidecar.rehearsal.openapi.requirements import Operation
from sidecar.rehearsal.openapi.templates import template_of
from sidecar.rehearsal.openapi.tree import NONE, Fields, Tree, field_of, is_null, short, text_in

_PARAMETER: Outline = {
    "$ref": None,
    "name": None,
    "in": None,
    "pattern": None,
    "x-multi-segment": None,
    "schema": {"pattern": None, "x-multi-segment": None},
}
_OPERATION: Outline = {
    "$ref": None,
    "tags": None,
    "operationId": None,
    "security": None,
    "servers": None,
    "parameters": _PARAMETER,
}
_ITEM: Outline = {
    "$ref": None,
    "servers": None,
    "parameters": _PARAMETER,
    "additionalOperations": {"*": _OPERATION},
    "*": _OPERATION,
}
_DOCUMENT: Outline = {
    "openapi": None,
    "swagger": None,
    "info": {"title": None, "version": None},
    "basePath": None,
    "servers": None,
    "security": None,
    "securityDefinitions": None,
    "parameters": {"*": _PARAMETER},
    "paths": {"*": _ITEM},
    "components": {"securitySchemes": None, "parameters": {"*": _PARAMETER}, "pathItems": {"*": _ITEM}},
}
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")
_OF_AN_ITEM = frozenset({"$ref", "summary", "description", "servers", "parameters", "additionalOperations"})
_VERSION = re.compile(r"2\.0|3\.[0-2](\.[0-9]+)?(-.+)?")
_MOST_OPERATIONS = 20_000
_MOST_BASES = 20
_LONGEST_TEMPLATE = 4096
"""Half of the default limit for a request line."""
_LONGEST_METHOD = 32
_AUTHORITY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*|[A-Za-z][A-Za-z0-9+.-]*:")
_GENERAL = re.compile(r"api|apis|rest|v[0-9][0-9A-Za-z.]*|[0-9.-]*", re.IGNORECASE)
"""Segments that do not describe the subject of a path."""
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
"""A set of characters in a regular expression."""


Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A security scheme: its type in words, and its scopes with their descriptions."""

    name: str
    kind: str
    scopes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The parts of a document that say who may call what."""

    file: str
    title: str
    schemes: tuple[Scheme, ...]
    operations: tuple[Operation, ...]
    remarks: tuple[Problem, ...] = ()
    """Notes on what could not be read as intended, or cannot be routed."""

    @property
    def scopes(self) -> Mapping[str, str]:
        """The scopes of every scheme with their descriptions, and those that operations name."""
        found = {name: text for scheme in self.schemes for name, text in scheme.scopes.items()}
        for operation in self.operations:
            for name in sorted(frozenset().union(*(operation.security or ()))):
                found.setdefault(name, "")
        return found


def _no_progress(_count: int) -> None:
    pass


def read_description(path: str, base_path: str | None = None, *, progress: Progress = _no_progress) -> Description:
    """Reads the document at `path`. Raises ConfigError with every problem. Blocks: it reads the file.

    base_path: prefix of all paths, in place of the one from the document's servers. progress: called with the number of
    operations so far.
    """
    return description_of(read_file(path, most=MOST_BYTES), path, base_path, progress=progress)


def description_of(
    data: bytes, file: str, base_path: str | None = None, *, progress: Progress = _no_progress
) -> Description:
    """As `read_description`, for text that was already read."""
    root = read_outline(data, file, _DOCUMENT)
    if not isinstance(root, Entries):
        raise unreadable(root.place, "is not an OpenAPI document: it must be a mapping with `openapi` and `paths`")
    tree = Tree(root)
    description = _Reader(tree, file, base_path, progress).description()
    if tree.problems:
        raise ConfigError(sorted(dict.fromkeys(tree.problems), key=lambda problem: (problem.line, problem.column)))
    return description


@dataclass(frozen=True, slots=True)
class _Context:
    """The default for operations without their own `security`."""

    bases: tuple[str, ...]
    security: Node | None
    slashes: Mapping[str, bool]
    """Names of path parameters, and whether their values may contain slashes."""


@dataclass(slots=True)
class _Reader:
    tree: Tree
    file: str
    base_path: str | None
    progress: Progress
    operations: list[Operation] = field(default_factory=list)
    defined: set[str] = field(default_factory=set)
    """Names of security schemes."""
    spellings: dict[str, str] = field(default_factory=dict)
    """Maps upper-case methods to their spelling: no two routes may have methods that differ only in case."""

    def description(self) -> Description:
        top = self.tree.mapping(self.tree.root, "the document")
        self._check_version(top)
        schemes = tuple(self._schemes(top))
        self.defined = {scheme.name for scheme in schemes}
        context = _Context(self._bases(top, ("",)), field_of(top, "security"), {})
        paths = self.tree.mapping(field_of(top, "paths"), "`paths`")
        for key, item in paths.values():
            if not key.text.startswith("x-"):
                self._item(key, item, context)
        if not self.operations and not self.tree.problems:
            self.tree.problem(self.tree.root.place, "describes no operation: its `paths` are missing or empty")
        self.tree.remark_external()
        return Description(
            file=self.file,
            title=text_in(field_of(self.tree.mapping(field_of(top, "info"), "`info`"), "title")),
            schemes=schemes,
            operations=tuple(self.operations),
            remarks=tuple(dict.fromkeys(self.tree.remarks)),
        )

    def _check_version(self, top: Fields) -> None:
        name = "openapi" if "openapi" in top else "swagger"
        if name not in top:
            why = "is not an OpenAPI document: it has neither `openapi: 3.…` nor `swagger: '2.0'`"
            self.tree.problem(self.tree.root.place, why)
        elif not _VERSION.fullmatch(text_in(top[name][1]).strip()):
            found = f"'{short(text_in(top[name][1]))}'"
            self.tree.problem(top[name][1].place, f"{found} is not a supported version: 2.0, 3.0, 3.1 and 3.2 are")

    # Security.

    def _schemes(self, top: Fields) -> Iterator[Scheme]:
        components = self.tree.mapping(field_of(top, "components"), "`components`")
        for section in (field_of(top, "securityDefinitions"), field_of(components, "securitySchemes")):
            for key, node in self.tree.mapping(section, "the section of security schemes").values():
                if key.text.startswith("x-") or (found := self.tree.followed(node, "the security scheme")) is None:
                    continue
                yield self._scheme(key.text, self.tree.mapping(found, "a security scheme"))

    def _scheme(self, name: str, fields: Fields) -> Scheme:
        kind, where, called = (text_in(field_of(fields, key)) for key in ("type", "in", "name"))
        flows = [fields]
        for key, flow in self.tree.mapping(field_of(fields, "flows"), "`flows`").values():
            if not key.text.startswith("x-"):
                flows.append(self.tree.mapping(flow, "a flow"))
        scopes: dict[str, str] = {}
        for fields_of_flow in flows:
            for key, text in self.tree.mapping(field_of(fields_of_flow, "scopes"), "`scopes`").values():
                if not key.text.startswith("x-"):
                    scopes.setdefault(key.text, text_in(text))
        kinds = {"apiKey": f"apiKey in {where} {called}", "http": f"http {text_in(field_of(fields, 'scheme'))}"}
        return Scheme(name=name, kind=kinds.get(kind, kind), scopes=scopes)

    def _security(self, node: Node | None) -> tuple[tuple[frozenset[str], ...] | None, bool]:
        """The alternatives, and whether callers without credentials are allowed: by one of them, or because there is
        none.
        """
        if node is None or is_null(node):
            return None, False
        found = []
        for item in self.tree.items(node, "`security`"):
            if not isinstance(item, Entries):
                self.tree.problem(item.place, "an item of `security` must be a mapping of schemes to scopes")
                continue
            found.append(self._alternative(self.tree.mapping(item, "an item of `security`")))
        return tuple(each for each in found if each is not None), not found or None in found

    def _alternative(self, schemes: Fields) -> frozenset[str] | None:
        """The scopes of all schemes of an alternative; None without any scheme."""
        scopes = set[str]()
        for key, names in schemes.values():
            if key.text not in self.defined:
                self.tree.remark(key.place, f"'{short(key.text)}' is not a security scheme of the document")
            scopes.update(filter(None, map(text_in, self.tree.items(names, "the scopes of a scheme"))))
        return frozenset(scopes) if schemes else None

    # Servers.

    def _bases(self, fields: Fields, inherited: tuple[str, ...]) -> tuple[str, ...]:
        """The prefixes of all paths: from `servers` or `basePath`."""
        if self.base_path is not None:
            return (_trimmed(self.base_path),)
        if "basePath" in fields:
            return (_trimmed(text_in(fields["basePath"][1])),)
        servers = self.tree.items(field_of(fields, "servers"), "`servers`")
        found = [base for server in servers for base in self._bases_of(self.tree.mapping(server, "a server"))]
        return tuple(dict.fromkeys(found))[:_MOST_BASES] or inherited

    def _bases_of(self, server: Fields) -> Iterator[str]:
        """The path of a server's URL, with each value that its variables may have."""
        url, choices = text_in(field_of(server, "url"))[:_LONGEST_TEMPLATE], []
        for key, node in self.tree.mapping(field_of(server, "variables"), "`variables`").values():
            variable = self.tree.mapping(node, "a variable")
            listed = self.tree.items(field_of(variable, "enum"), "`enum`")
            values = [text_in(field_of(variable, "default")), *map(text_in, listed)]
            if f"{{{key.text}}}" in url:
                choices.append([(f"{{{key.text}}}", value) for value in dict.fromkeys(values)])
        for chosen in islice(product(*choices), _MOST_BASES):
            made = url
            for name, value in chosen:
                made = made.replace(name, value)
            authority = _AUTHORITY.match(made)
            yield _trimmed(made[authority.end() :] if authority else made)

    # Paths.

    def _item(self, key: Scalar, node: Node, outer: _Context) -> None:
        if len(key.text) > _LONGEST_TEMPLATE:
            self.tree.problem(key.place, f"a path of {len(key.text):,} characters is longer than requests may be")
            return
        if not key.text.startswith("/"):
            self.tree.remark(key.place, f"`{short(key.text)}` does not begin with a slash: one is added")
        found = self.tree.followed(node, f"`{short(key.text)}`")
        own = self.tree.mapping(node, f"`{short(key.text)}`")
        fields = own if found is None else {**self.tree.mapping(found, f"`{short(key.text)}`"), **own}
        context = _Context(self._bases(fields, outer.bases), outer.security, self._slashes(fields, outer.slashes))
        for method, place, operation in self._methods(key, fields):
            spelling = self.spellings.setdefault(method.upper(), method)
            if method in NEVER_ROUTED:
                self.tree.remark(place, f"`{method} {short(key.text)}`: such requests are always answered 405")
            elif spelling != method:
                message = f"`{method}` and `{spelling}` differ only in case: `{method}` is left out"
                self.tree.remark(place, message)
            else:
                self._operation(method, place, key.text, operation, context)

    def _methods(self, path: Scalar, fields: Fields) -> Iterator[tuple[str, Place, Node]]:
        for key, node in fields.values():
            if key.text in _METHODS:
                yield key.text.upper(), key.place, node
            elif key.text not in _OF_AN_ITEM and not key.text.startswith("x-"):
                hint = did_you_mean(key.text, _METHODS)
                message = f"`{short(key.text)}` of `{short(path.text)}` is no method, and is left out{hint}"
                self.tree.remark(key.place, message)
        for key, node in self.tree.mapping(field_of(fields, "additionalOperations"), "`additionalOperations`").values():
            if is_token(key.text) and "*" not in key.text and len(key.text) <= _LONGEST_METHOD:
                yield known_spelling(key.text) or key.text, key.place, node
            else:
                self.tree.remark(key.place, f"`{short(key.text)}` is no method, and is left out")

    def _operation(self, method: str, place: Place, path: str, node: Node, outer: _Context) -> None:
        name = f"`{method} {short(path)}`"
        found = self.tree.followed(node, name)
        fields = NONE if found is None else self.tree.mapping(found, name)
        own = field_of(fields, "security")
        security, public = self._security(outer.security if own is None or is_null(own) else own)
        # If the operation is in another file, its security is unknown.
        if found is None:
            security, public = None, False
        tags = [text for text in map(text_in, self.tree.items(field_of(fields, "tags"), "`tags`")) if text]
        greedy = [each for each, holds in self._slashes(fields, outer.slashes).items() if holds]
        for base in self._bases(fields, outer.bases):
            template = template_of(f"{base}/{path.removeprefix('/')}", greedy)
            self._add(
                Operation(
                    method=method,
                    template=template.text,
                    pattern=template.pattern,
                    place=place,
                    tag=tags[0] if tags else _subject(path),
                    operation_id=text_in(field_of(fields, "operationId")),
                    security=security,
                    public=public,
                    remarks=template.remarks,
                )
            )

    def _add(self, operation: Operation) -> None:
        if len(self.operations) < _MOST_OPERATIONS:
            self.operations.append(operation)
            self.progress(len(self.operations))
        elif not self.tree.problems:
            self.tree.problem(operation.place, f"has more than {_MOST_OPERATIONS:,} operations")

    def _slashes(self, fields: Fields, inherited: Mapping[str, bool]) -> Mapping[str, bool]:
        """The operation's `parameters`, which override those of the path."""
        found = dict(inherited)
        for node in self.tree.items(field_of(fields, "parameters"), "`parameters`"):
            target = self.tree.followed(node, "the parameter")
            parameter = NONE if target is None else self.tree.mapping(target, "a parameter")
            if text_in(field_of(parameter, "in")) == "path":
                found[text_in(field_of(parameter, "name"))] = self._holds_slashes(parameter)
        return found

    def _holds_slashes(self, parameter: Fields) -> bool:
        """GitHub uses an extension for this, Google a regular expression: `^projects/[^/]+$`."""
        schema = self.tree.mapping(field_of(parameter, "schema"), "`schema`")
        for fields in (parameter, schema):
            if text_in(field_of(fields, "x-multi-segment")) == "true":
                return True
            if "/" in _CLASS.sub("", text_in(field_of(fields, "pattern"))[:_LONGEST_TEMPLATE]):
                return True
        return False


def _trimmed(base: str) -> str:
    """`/v1` for `v1/?x#y`; empty for `/`."""
    path = re.split(r"[?#]", base, maxsplit=1)[0].strip().strip("/")
    return f"/{path}" if path else ""


def _subject(path: str) -> str:
    """The subject of a path, for operations without a tag: its first fixed segment that is meaningful."""
    segments = (segment.partition(".")[0] for segment in path.split("/") if "{" not in segment)
    return next((segment for segment in segments if not _GENERAL.fullmatch(segment)), "api")
