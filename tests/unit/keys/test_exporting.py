"""Exported keys: everything but secrets, and nothing that a spreadsheet would execute."""

import csv
import io
import json
from dataclasses import replace

import pytest

from sidecar.core.model import KeyStatus
from sidecar.keys.records import PUBLIC_FIELDS, public_key
from sidecar.keys.transfer.formats import csv_header, csv_line, import_record, json_line, neutral
from tests.unit.keys.making import NOW_US, a_key


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1+1", "\uff1d1"])
def test_a_cell_that_could_begin_a_formula_begins_with_an_apostrophe(cell: str) -> None:
    assert neutral(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["", "a=1", "acme", "1", "(1)", '{"a": "=1"}'])
def test_any_other_cell_is_unchanged(cell: str) -> None:
    assert neutral(cell) == cell


def test_a_row_can_be_read_back_with_every_dangerous_cell_neutralised() -> None:
    key = a_key(name='=cmd|"/c calc"!A1', tenant="@acme", metadata={"note": 'a,"b"'}, quotas={"a": 1, "b": 2})
    key = replace(key, scopes=("x:read", "x:write"), last_used_agent="-1,2")
    [heading, row] = csv.reader(io.StringIO(csv_header() + csv_line(public_key(key, NOW_US))))
    cells = dict(zip(heading, row, strict=True))
    assert tuple(heading) == PUBLIC_FIELDS
    assert cells["name"] == '\'=cmd|"/c calc"!A1'
    assert (cells["tenant"], cells["last_used_agent"]) == ("'@acme", "'-1,2")
    assert (cells["scopes"], cells["quotas"]) == ("x:read x:write", "a=1 b=2")
    assert json.loads(cells["metadata"]) == {"note": 'a,"b"'}


def test_no_line_holds_the_digest_and_the_status_is_that_of_now() -> None:
    key = a_key("s1", expires_at=NOW_US)
    line = json_line(public_key(key, NOW_US))
    for text in (line, csv_line(public_key(key, NOW_US))):
        assert key.digest.hex() not in text
        assert key.algorithm not in text
    assert json.loads(line)["status"] == "expired"
    assert json.loads(json_line(public_key(replace(key, status=KeyStatus.REVOKED), NOW_US)))["status"] == "revoked"
    assert line.count("\n") == 1


def test_a_name_cannot_break_a_line() -> None:
    line = json_line(public_key(a_key(name="a\r\nSet-Cookie: b"), NOW_US))
    assert line.splitlines() == [line[:-1]]


def test_a_record_for_import_holds_the_hash() -> None:
    key = a_key("s1", tenant="acme")
    record = import_record(key)
    assert (record["hash"], record["algorithm"], record["id"]) == (key.digest.hex(), "sha256", key.id)
    assert "plan" not in record
