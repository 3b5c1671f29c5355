"""Many keys are disabled or revoked together: the changes are listed first, and all are made or none."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.wire.admin.calls import Admin, Response


def bulk(admin: Admin, action: str, *, dry_run: bool = False, **which: object) -> Response:
    return admin.call("POST", "bulk", {"action": action, "dry_run": dry_run, **which})


def statuses(admin: Admin, tenant: str) -> Mapping[str, str]:
    return {key["name"]: key["status"] for key in admin.call("GET", f"keys?tenant={tenant}").json["keys"]}


def names(response: Response) -> list[str]:
    keys: list[dict[str, Any]] = response.json["keys"]
    return sorted(key["name"] for key in keys)


def test_a_dry_run_lists_the_keys_and_changes_none(ops: Admin) -> None:
    ops.issue(name="first", tenant="dry")
    ops.issue(name="second", tenant="dry")
    told = bulk(ops, "revoke", dry_run=True, matching={"tenant": "dry"})
    assert (told.status, told.json["dry_run"], names(told)) == (200, True, ["first", "second"])
    assert set(statuses(ops, "dry").values()) == {"active"}


def test_keys_that_match_are_changed_together_each_with_its_audit_row(ops: Admin) -> None:
    ids = {ops.issue(name=name, tenant="together")[0] for name in ("one", "two")}
    done, _ = ops.issue(name="three", tenant="together")
    ops.call("POST", f"keys/{done}/revoke")
    told = bulk(ops, "disable", matching={"tenant": "together"})
    assert {key["id"]: key["status"] for key in told.json["keys"]} == dict.fromkeys(ids, "disabled")
    assert statuses(ops, "together") == {"one": "disabled", "two": "disabled", "three": "revoked"}
    rows = ops.call("GET", "audit?tenant=together&action=disable").json["rows"]
    assert {row["key_id"] for row in rows} == ids and {row["actor"] for row in rows} == {"token:ops"}
    assert bulk(ops, "disable", matching={"tenant": "together"}).json["keys"] == []


def test_keys_are_selected_by_their_time_without_use(ops: Admin) -> None:
    ops.issue(name="young", tenant="idle")
    assert bulk(ops, "revoke", matching={"tenant": "idle", "unused_for_seconds": 3600}).json["keys"] == []
    assert names(bulk(ops, "revoke", matching={"tenant": "idle", "unused_for_seconds": 0})) == ["young"]


def test_one_unknown_id_leaves_all_keys_as_they_are(ops: Admin) -> None:
    key_id, _ = ops.issue(name="kept", tenant="ids")
    assert bulk(ops, "revoke", ids=[key_id, "key_00000000000000000000"]).status == 404
    assert statuses(ops, "ids") == {"kept": "active"}
    assert names(bulk(ops, "revoke", ids=[key_id, key_id])) == ["kept"]
    assert statuses(ops, "ids") == {"kept": "revoked"}


def test_a_token_of_one_tenant_changes_keys_of_that_tenant_only(ops: Admin, acme: Admin) -> None:
    theirs, _ = ops.issue(name="theirs", tenant="other")
    own, _ = ops.issue(name="own", tenant="acme")
    assert bulk(acme, "revoke", ids=[own, theirs]).status == 404
    assert bulk(acme, "revoke", matching={"tenant": "other"}).json["keys"] == []
    assert "own" in names(bulk(acme, "revoke", matching={"status": "active"}))
    assert statuses(ops, "other") == {"theirs": "active"}
    assert statuses(ops, "acme")["own"] == "revoked"


def test_a_token_that_may_only_read_changes_nothing(ops: Admin, auditor: Admin) -> None:
    ops.issue(name="safe", tenant="readonly")
    for dry_run in (True, False):
        assert bulk(auditor, "revoke", dry_run=dry_run, matching={"tenant": "readonly"}).status == 403
    assert statuses(ops, "readonly") == {"safe": "active"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"dry_run": False}, ""),
        ({"dry_run": False, "ids": [], "matching": {"tenant": "x"}}, ""),
        ({"dry_run": False, "matching": {}}, "/matching"),
        ({"dry_run": False, "matching": {"search": ""}}, "/matching/search"),
        ({"ids": []}, "/dry_run"),
    ],
)
def test_what_does_not_say_which_keys_and_whether_to_change_them_is_refused(
    ops: Admin, body: dict[str, object], pointer: str
) -> None:
    response = ops.call("POST", "bulk", {"action": "revoke", **body})
    assert (response.status, response.pointers) == (400, [pointer])
