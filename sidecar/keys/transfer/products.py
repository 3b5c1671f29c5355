"""Reads lists of keys that other products export.

Sources: Kong, `GET /key-auths`, and `deck gateway dump --format json`; AWS, the API key file format of API Gateway, and
`aws apigateway get-api-keys --include-values`; APISIX, `GET /apisix/admin/consumers` and `…/credentials`; Tyk,
`GET /tyk/keys/ID`, and `internal/crypto/hash.go`; Unkey, `POST /v2/apis.listKeys`.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final, Literal, NamedTuple, get_args

from sidecar.core.apikey import without_keys
from sidecar.core.units import counted
from sidecar.keys.transfer.fields import InvalidLine
from sidecar.keys.transfer.formats import BadLine, Entry, KeyFile

Product = Literal["kong", "aws", "apisix", "tyk", "unkey"]
PRODUCTS: Final[tuple[Product, ...]] = get_args(Product)
MAX_BYTES: Final = 256 * 1024 * 1024
"""The largest size of a list, which is read as a whole."""

Record = Mapping[str, Any]
Fields = dict[str, object]


class LeftOut:
    """What a list has that no key here can have: fields by name, and entries that are no API keys."""

    def __init__(self) -> None:
        self._fields: dict[str, tuple[int, int]] = {}
        """The number of keys that have it, and the first of them."""
        self.others = 0

    def add(self, number: int, names: Iterable[str]) -> None:
        for name in names:
            keys, first = self._fields.get(name, (0, number))
            self._fields[name] = keys + 1, first

    def notes(self) -> Iterator[tuple[int, str]]:
        """A line for each field, with the number of the first key that has it; 0 for the list as a whole."""
        for name, (keys, first) in list(self._fields.items())[:_MOST_NOTES]:
            have = "has" if keys == 1 else "have"
            yield first, f"{counted(keys, 'key')} {have} `{without_keys(name)[:_LONGEST_NAME]}`, which is not imported"
        if (more := len(self._fields) - _MOST_NOTES) > 0:
            yield 0, f"{counted(more, 'other field')} of its keys {'is' if more == 1 else 'are'} not imported either"
        if self.others:
            are = "is" if self.others == 1 else "are"
            yield 0, f"{counted(self.others, 'consumer')} {are} left out: their credentials are no API keys"


def product_entries(file: BinaryIO, product: Product, left_out: LeftOut) -> Iterator[Entry | BadLine]:
    """Yield the keys of a list. In JSON they are counted from 1; in CSV each has the number of its line."""
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        yield BadLine(line=1, problem=f"the file is larger than {MAX_BYTES} bytes: split it")
    elif product == "aws" and not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        for row in KeyFile(io.BytesIO(content), "csv", any_columns=True):
            yield _from_aws_row(row, left_out)
    else:
        yield from _from_json(content, _READERS[product], left_out)


def _from_json(content: bytes, reader: "_Reader", left_out: LeftOut) -> Iterator[Entry | BadLine]:
    """Read one JSON document, or several in sequence, as for a list of several pages."""
    number, further = 0, ""
    for document in _documents(content):
        if document is _UNREADABLE:
            yield BadLine(line=number + 1, problem="from here on, the file is not JSON in UTF-8")
            return
        for record in reader.records(document):
            if record is _NO_API_KEY:
                left_out.others += 1
                continue
            number += 1
            yield (entry := _entry(number, record, reader.fields_of))
            if isinstance(entry, Entry):
                left_out.add(number, _unread(record, reader.read))
        further = _further_page(document)
    if further:
        yield BadLine(line=max(number, 1), problem=f"the list goes on (`{further}`): append its further pages")


def _further_page(document: object) -> str:
    """The member of a page that says that others follow it; empty if none does, or the document is no page."""
    if not isinstance(document, dict):
        return ""
    if isinstance(paging := document.get("pagination"), dict) and paging.get("hasMore"):
        return "cursor"
    return next((name for name in _NEXT_PAGE if isinstance(document.get(name), str) and document[name]), "")


def _unread(record: Record, read: Mapping[str, frozenset[str]], place: str = "") -> Iterator[str]:
    """The fields that are not read, each with its place (`consumer.acls`), unless they say nothing."""
    for name, value in record.items():
        at = f"{place}{name}"
        if f"{at}." in read and _is_object(value):
            yield from _unread(value, read, f"{at}.")
        elif name not in read[place] and not _says_nothing(value):
            yield at


def _says_nothing(value: object) -> bool:
    """Whether it is how these products write that there is none: -1 is no limit."""
    if isinstance(value, dict):
        return all(map(_says_nothing, value.values()))
    return value in (None, False, 0, -1, "", [])


_MOST_NOTES: Final = 20
_LONGEST_NAME: Final = 60
_NO_API_KEY: Final[Any] = object()
"""Stands for an entry of a list with credentials of other kinds."""
_UNREADABLE: Final = object()
_NEXT_PAGE: Final = ("next", "position", "NextToken")
"""Of Kong, the API of AWS, and its command."""


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

_OTHER_CREDENTIALS: Final = (
    "basicauth_credentials",
    "hmacauth_credentials",
    "jwt_secrets",
    "mtls_auth_credentials",
    "oauth2_credentials",
)


def _kong_records(document: object) -> Iterator[Record]:
    if not isinstance(document, dict):
        yield from _objects(document)
        return
    if "key" in document:
        yield document
    yield from _objects(document.get("data"))
    yield from _objects(document.get("keyauth_credentials"))
    for consumer in filter(_is_object, _objects(document.get("consumers"))):
        if not consumer.get("keyauth_credentials") and any(map(consumer.get, _OTHER_CREDENTIALS)):
            yield _NO_API_KEY
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


def _from_aws_row(row: Entry | BadLine, left_out: LeftOut) -> Entry | BadLine:
    if isinstance(row, BadLine):
        return row
    cells = row.fields
    left_out.add(row.line, _unread(cells, _AWS_COLUMNS))
    fields = {name: cells[name] for name in ("key", "name", "enabled") if name in cells}
    more = _metadata(description=cells.get("description"), usage_plans=cells.get("usageplanids"))
    return Entry(line=row.line, fields={**fields, "metadata": more} if more else fields)


# APISIX: consumers with the plugin key-auth, and their credentials.


def _apisix_records(document: object) -> Iterator[Record]:
    """Consumers and credentials of other plugins, such as for JWT, are no API keys."""
    listed = document.get("list", [document]) if isinstance(document, dict) else document
    for item in _objects(listed):
        value = item.get("value") if _is_object(item) else item
        if not _is_object(value):
            yield value
        elif _is_object(value.get("plugins")) and "key-auth" in value["plugins"]:
            yield {**value, "place": str(item.get("key", ""))}
        elif value.get("plugins"):
            yield _NO_API_KEY


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


class _Reader(NamedTuple):
    """How a list is read: its records, the fields of a key, and which fields of a record are looked at.

    read: by place (`""` is the record itself). Fields that only say how things stand just now, as when a key was last
    used, count as looked at. All others are reported, so that nothing that a product adds is dropped without a word.
    """

    records: Callable[[object], Iterator[Record]]
    fields_of: Callable[[Record], Fields]
    read: Mapping[str, frozenset[str]]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_AWS_COLUMNS: Final = {"": _names("key name enabled description usageplanids")}
_READERS: Final[Mapping[Product, _Reader]] = {
    "kong": _Reader(
        _kong_records,
        _from_kong,
        {
            "": _names("key id tags created_at updated_at ttl consumer"),
            "consumer.": _names("id username custom_id created_at updated_at keyauth_credentials"),
        },
    ),
    "aws": _Reader(
        _aws_records, _from_aws, {"": _names("id value name description enabled createdDate lastUpdatedDate")}
    ),
    "apisix": _Reader(
        _apisix_records,
        _from_apisix,
        {
            "": _names("id username name desc labels plugins create_time update_time place"),
            "plugins.": _names("key-auth"),
        },
    ),
    "tyk": _Reader(
        _tyk_records,
        _from_tyk,
        {
            "": _names(
                "key hash alias org_id is_inactive expires date_created meta_data apply_policies tags key_id "
                "last_check last_updated allowance per quota_remaining quota_renews quota_renewal_rate data_expires "
                "throttle_interval throttle_retry_limit id_extractor_deadline enable_detailed_recording "
                "enable_detail_recording"
            )
        },
    ),
    "unkey": _Reader(
        _unkey_records,
        _from_unkey,
        {
            "": _names(
                "keyId apiId workspaceId start plaintext hash name enabled expires permissions roles meta identity "
                "createdAt updatedAt lastUsedAt"
            ),
            "identity.": _names("id externalId"),
        },
    ),
}
