"""Reads lists of keys that other products export, and hashes the plaintext keys in them.

Sources: Kong, `GET /key-auths`, and `deck gateway dump --format json`; AWS, the API key file format of API Gateway, and
`aws apigateway get-api-keys --include-values`; APISIX, `GET /apisix/admin/consumers` and `…/credentials`; Tyk,
`GET /tyk/keys/ID`, and `internal/crypto/hash.go`; Unkey, `POST /v2/apis.listKeys`.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final, Literal, get_args

from sidecar.core.apikey import Hasher, pasted
from sidecar.keys.transfer.fields import InvalidLine, Origin
from sidecar.keys.transfer.formats import BadLine, Entry, KeyFile
from sidecar.keys.validation import KeyRules

Product = Literal["kong", "aws", "apisix", "tyk", "unkey"]
PRODUCTS: Final[tuple[Product, ...]] = get_args(Product)
MAX_BYTES: Final = 256 * 1024 * 1024
"""The largest size of a list, which is read as a whole."""

Record = Mapping[str, Any]
Fields = dict[str, object]


def product_entries(file: BinaryIO, product: Product) -> Iterator[Entry | BadLine]:
    """Yield the keys of a list. In JSON they are counted from 1; in CSV each has the number of its line."""
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        yield BadLine(line=1, problem=f"the file is larger than {MAX_BYTES} bytes: split it")
    elif product == "aws" and not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        yield from map(_from_aws_row, KeyFile(io.BytesIO(content), "csv", any_columns=True))
    else:
        yield from _from_json(content, product)


def _from_json(content: bytes, product: Product) -> Iterator[Entry | BadLine]:
    """Read one JSON document, or several in sequence, as for a list of several pages."""
    records, fields_of = _READERS[product]
    number = 0
    for document in _documents(content):
        if document is _UNREADABLE:
            yield BadLine(line=number + 1, problem="from here on, the file is not JSON in UTF-8")
            return
        for record in records(document):
            number += 1
            yield _entry(number, record, fields_of)


_UNREADABLE: Final = object()


def _documents(content: bytes) -> Iterator[object]:
    """Yield the JSON documents of a sequence; `_UNREADABLE` if the rest is not JSON."""
    decoder = json.JSONDecoder()
    try:
        text = content.decode("utf-8-sig").strip()
        while text:
            document, end = decoder.raw_decode(text)
            text = text[end:].lstrip()
            yield document
    except (ValueError, RecursionError):
        yield _UNREADABLE


def _entry(number: int, record: Record, fields_of: Callable[[Record], Fields]) -> Entry | BadLine:
    try:
        found = fields_of(record)
    except InvalidLine as error:
        return BadLine(line=number, problem="; ".join(error.problems))
    except (TypeError, AttributeError, KeyError, ValueError, OverflowError):
        return BadLine(line=number, problem="does not look like a key in such a list: is --format right?")
    return Entry(line=number, fields={name: value for name, value in found.items() if value not in (None, "", {}, [])})


def _objects(value: object) -> Iterator[Any]:
    """Yield the items of a list, or nothing if it is not a list. Items that are not objects become bad lines."""
    yield from value if isinstance(value, list) else ()


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _metadata(**values: object) -> dict[str, str]:
    """The values that are present, as text. Line breaks become spaces, because metadata is printable."""
    return {name: " ".join(_text(value).split()) for name, value in values.items() if value not in (None, "", [], {})}


def _text(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Kong: credentials of the plugin key-auth.


def _kong_records(document: object) -> Iterator[Record]:
    if not isinstance(document, dict):
        yield from _objects(document)
        return
    if "key" in document:
        yield document
    yield from _objects(document.get("data"))
    yield from _objects(document.get("keyauth_credentials"))
    for consumer in filter(_is_object, _objects(document.get("consumers"))):
        for credential in _objects(consumer.get("keyauth_credentials")):
            yield {**credential, "consumer": consumer} if _is_object(credential) else credential


def _from_kong(credential: Record) -> Fields:
    if credential.get("ttl"):
        # The Admin API gives what is left of it, a dump its initial value.
        raise InvalidLine(["ttl: does not say when this key expires: write it as expires_at, in JSON lines"])
    found = credential.get("consumer")
    consumer: Record = found if isinstance(found, dict) else {"id": found}
    owner = consumer.get("username") or consumer.get("custom_id") or consumer.get("id")
    created = credential.get("created_at")
    return {
        "key": credential["key"],
        "name": owner or credential.get("id"),
        "created_at": created,
        "metadata": _metadata(
            consumer=consumer.get("id"), custom_id=consumer.get("custom_id"), tags=credential.get("tags")
        ),
    }


# AWS API Gateway.


def _aws_records(document: object) -> Iterator[Record]:
    yield from _objects(document.get("items") if isinstance(document, dict) else document)


def _from_aws(item: Record) -> Fields:
    if "value" not in item:
        raise InvalidLine(["value: is missing: list keys with --include-values"])
    created = item.get("createdDate")
    return {
        "key": item["value"],
        "name": item["name"],
        "enabled": item.get("enabled", True),
        "created_at": created,
        "metadata": _metadata(aws_id=item.get("id"), description=item.get("description")),
    }


def _from_aws_row(row: Entry | BadLine) -> Entry | BadLine:
    if isinstance(row, BadLine):
        return row
    cells = row.fields
    fields = {name: cells[name] for name in ("key", "name", "enabled") if name in cells}
    more = _metadata(description=cells.get("description"), usage_plans=cells.get("usageplanids"))
    return Entry(line=row.line, fields={**fields, "metadata": more} if more else fields)


# APISIX: consumers with the plugin key-auth, and their credentials.


def _apisix_records(document: object) -> Iterator[Record]:
    """Skips other consumers and credentials, such as those for JWT."""
    listed = document.get("list", [document]) if isinstance(document, dict) else document
    for item in _objects(listed):
        value = item.get("value") if _is_object(item) else item
        if not _is_object(value):
            yield value
        elif _is_object(value.get("plugins")) and "key-auth" in value["plugins"]:
            yield {**value, "place": str(item.get("key", ""))}


def _from_apisix(value: Record) -> Fields:
    key = value["plugins"]["key-auth"]["key"]
    if key.lower().startswith(("$env://", "$secret://")):
        raise InvalidLine(["key: is a reference to a secret, not the key: put the key in its place"])
    _, _, owner = value["place"].partition("/consumers/")
    return {
        "key": key,
        "name": value.get("username") or value.get("name") or owner.replace("/credentials/", " ") or value.get("id"),
        "created_at": value.get("create_time"),
        "metadata": {
            **_metadata(**(value.get("labels") or {})),
            **_metadata(consumer=owner.partition("/")[0], description=value.get("desc")),
        },
    }


# Tyk: session objects, each with `key` or `hash` next to its fields.

_GO_ZERO_TIME: Final = ("None", "0001-01-01T00:00:00")
"""The value of a time that was never set."""
_MURMUR: Final = re.compile(r"(?:[0-9a-f]{8}|[0-9a-f]{16}|[0-9a-f]{32})")


def _tyk_records(document: object) -> Iterator[Record]:
    yield from _objects(document if isinstance(document, list) else [document])


def _from_tyk(session: Record) -> Fields:
    digest = session.get("hash")
    if digest is None and "key" not in session:
        raise InvalidLine(["add the key to each session object, as `key`, or its hash, as `hash`: see the recipes"])
    if digest is not None and _MURMUR.fullmatch(digest):
        raise InvalidLine(
            ["hash: is a Murmur hash, which cannot be imported: only hashes of hash_key_function sha256 can"]
        )
    expires = session.get("expires", 0)
    return {
        "key": session.get("key"),
        "hash": digest,
        "name": session.get("alias") or session.get("org_id") or "Tyk key",
        "enabled": not session.get("is_inactive", False),
        "expires_at": expires if expires > 0 else None,
        "created_at": None if str(session.get("date_created")).startswith(_GO_ZERO_TIME) else session["date_created"],
        "metadata": {
            **_metadata(**(session.get("meta_data") or {})),
            **_metadata(org_id=session.get("org_id"), policies=session.get("apply_policies"), tags=session.get("tags")),
        },
    }


# Unkey.


def _unkey_records(document: object) -> Iterator[Record]:
    listed = document.get("data", document.get("keys")) if isinstance(document, dict) else document
    yield from _objects([listed] if isinstance(listed, dict) else listed)


def _from_unkey(key: Record) -> Fields:
    plaintext, digest = key.get("plaintext"), key.get("hash")
    if not plaintext and not digest:
        raise InvalidLine(
            ["plaintext: is missing: list keys with decrypt: true, which only recoverable keys have, or add the hash"]
        )
    identity = key.get("identity") or {}
    return {
        "key": plaintext,
        "hash": None if plaintext else digest,
        "prefix": None if plaintext else key.get("start"),
        "name": key.get("name") or identity.get("externalId") or key["keyId"],
        "enabled": key.get("enabled", True),
        "scopes": key.get("permissions"),
        "expires_at": key.get("expires"),
        "created_at": key.get("createdAt"),
        "metadata": {
            **_metadata(**(key.get("meta") or {})),
            **_metadata(unkey_id=key.get("keyId"), external_id=identity.get("externalId"), roles=key.get("roles")),
        },
    }


_READERS: Final[Mapping[Product, tuple[Callable[[object], Iterator[Record]], Callable[[Record], Fields]]]] = {
    "kong": (_kong_records, _from_kong),
    "aws": (_aws_records, _from_aws),
    "apisix": (_apisix_records, _from_apisix),
    "tyk": (_tyk_records, _from_tyk),
    "unkey": (_unkey_records, _from_unkey),
}


# Lists of the keys themselves. They are hashed before anything else is done with a line.

_KEY: Final = re.compile(r"[!-~]{1,500}")
_SHOWN: Final = 4
_LONGEST_PREFIX: Final = 32
_NO_PLAINTEXT: Final = (
    "holds the key itself, not its hash: give --hash-plaintext, and each key is hashed as it is read and stored nowhere"
)


class Plaintexts:
    """Replaces a key with its hash, in the scheme by which the key will be looked up."""

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
        # No algorithm matches: it begins like our keys, and would be taken for one of them.
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
    """Yield entries that contain no key. Without `plaintexts`, stop at the first entry with a key."""
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
