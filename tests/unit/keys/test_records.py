"""The public fields of a key: one struct names them, and the API, the command line, exports and the ETag agree."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import msgspec
import pytest

from sidecar.admin.api.openapi import document
from sidecar.admin.api.routes import OPERATIONS
from sidecar.cli.output import described, key_as_json
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import StoreUnavailable
from sidecar.keys.records import COLUMNS, PUBLIC_FIELDS, PublicKey, etag_of, public_key, public_row, row_of
from sidecar.keys.transfer.formats import csv_header, csv_line, json_line
from tests.unit.keys.making import NOW_US, a_key

KEY = a_key(
    tenant="acme",
    environment="live",
    scopes=("streams:read",),
    plan="pro",
    quotas={"requests": 5},
    metadata={"team": "ci"},
    disabled_at=NOW_US,
    revoked_at=NOW_US,
    replaced_at=NOW_US,
    retires_at=NOW_US + 1,
    expires_at=NOW_US + 2,
    replaces="key_old",
    last_used_at=NOW_US,
    last_used_address="192.0.2.7",
    last_used_agent="curl",
)
SECRET = {"digest", "algorithm"}
LAST_USE = {"last_used_at", "last_used_address", "last_used_agent"}


def api_document() -> Sequence[str]:
    schema = document(OPERATIONS, root="", version="1")["components"]["schemas"]["PublicKey"]
    assert schema["required"] == list(schema["properties"])
    return schema["required"]


def exported_row() -> Sequence[str]:
    [heading, row] = csv.reader(io.StringIO(csv_header() + csv_line(public_key(KEY, NOW_US))))
    assert all(row)
    return heading


@pytest.mark.parametrize(
    "shown",
    [
        lambda: json.loads(msgspec.json.encode(public_key(KEY, NOW_US))),
        api_document,
        lambda: json.loads(json_line(public_key(KEY, NOW_US))),
        exported_row,
    ],
    ids=["api", "openapi", "json export", "csv export"],
)
def test_each_view_of_a_key_shows_the_public_fields_in_order(shown: Callable[[], Sequence[str]]) -> None:
    assert tuple(shown()) == PUBLIC_FIELDS


def test_the_command_line_shows_the_public_fields_with_the_times_last() -> None:
    times = [name for name in PUBLIC_FIELDS if name.endswith("_at")]
    expected = [*(name for name in PUBLIC_FIELDS if name not in times), *times]
    assert list(key_as_json(KEY, NOW_US)) == expected
    assert [line.partition(":")[0] for line in described(KEY, NOW_US).splitlines()] == expected


def test_every_view_shows_the_same_values() -> None:
    api = json.loads(msgspec.json.encode(public_key(KEY, NOW_US)))
    assert json.loads(json_line(public_key(KEY, NOW_US))) == api
    assert json.loads(json.dumps(key_as_json(KEY, NOW_US))) == api


@pytest.mark.parametrize("later", [0, 1, 2], ids=["retiring", "retired", "expired"])
@pytest.mark.parametrize("status", KeyStatus)
def test_a_row_shows_what_its_key_shows(status: KeyStatus, later: int) -> None:
    for key in (replace(KEY, status=status), a_key(status=status)):
        assert public_row(row_of(key), NOW_US + later) == public_key(key, NOW_US + later)


@pytest.mark.parametrize("column", ["scopes", "quotas", "metadata", "status"])
def test_a_damaged_row_is_not_shown(column: str) -> None:
    row = list(row_of(KEY))
    row[COLUMNS.index(column)] = "["
    with pytest.raises(StoreUnavailable, match="is damaged"):
        public_row(row, NOW_US)


def test_everything_stored_about_a_key_is_public_but_its_hash() -> None:
    assert {field.name for field in fields(ApiKey)} - SECRET == set(PUBLIC_FIELDS)


@pytest.mark.parametrize("name", PUBLIC_FIELDS)
def test_the_entity_tag_changes_with_every_public_field_but_the_last_use(name: str) -> None:
    changed = replace(KEY, **{name: other_than(getattr(KEY, name))})
    assert getattr(public_key(changed), name) != getattr(public_key(KEY), name)
    assert (etag_of(changed) == etag_of(KEY)) is (name in LAST_USE)


def other_than(value: object) -> object:
    match value:
        case KeyStatus():
            return KeyStatus.REVOKED
        case str():
            return f"{value} 2"
        case int():
            return value + 1
        case tuple():
            return (*value, "streams:write")
        case _:
            return {}


def test_the_status_is_that_of_the_time_that_is_given_or_the_stored_one() -> None:
    key = a_key(expires_at=NOW_US)
    assert (public_key(key).status, public_key(key, NOW_US - 1).status) == ("active", "active")
    assert public_key(key, NOW_US).status == "expired"


def test_no_view_shows_what_is_secret() -> None:
    assert not SECRET & {*PublicKey.__struct_fields__, *key_as_json(KEY)}
