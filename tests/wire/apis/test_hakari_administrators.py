"""Hakari's administrators, as deploy/examples/hakari.yaml has them once each has a token."""

import pytest

from tests.harness.keys import run_cli
from tests.harness.running import EXAMPLES, Sidecar, StartSidecar
from tests.wire.admin.calls import Admin, admin_address


def made(project: str, *scopes: str) -> tuple[str, str]:
    """A token, and its entry in the configuration, as printed by the command line."""
    line = ["admin", "token", "--name", project, "--tenant", project, "--rights", "write"]
    told = run_cli(*line, *(f"--scope={scope}" for scope in scopes)).stdout
    token = next(line.strip() for line in told.splitlines() if line.startswith("    "))
    return token, told[told.index("    - name:") :]


@pytest.fixture(scope="module")
def tokens() -> dict[str, tuple[str, str]]:
    """As the example has them for the first project; for the second without the line that lets it grant `*`."""
    return {"prj_1": made("prj_1", "*"), "prj_2": made("prj_2")}


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar, tokens: dict[str, tuple[str, str]]) -> Sidecar:
    entries = "".join(entry for _, entry in tokens.values())
    example = (EXAMPLES / "hakari.yaml").read_text(encoding="utf-8")
    return start_shared_sidecar(f"{example}\nadmin:\n  listen: 127.0.0.1:0\n  tokens:\n{entries}")


@pytest.fixture(scope="module")
def admins(sidecar: Sidecar, tokens: dict[str, tuple[str, str]]) -> dict[str, Admin]:
    address = admin_address(sidecar)
    return {project: Admin(address=address, token=token) for project, (token, _) in tokens.items()}


@pytest.mark.requirement("K9")
def test_an_administrator_creates_lists_and_revokes_the_keys_of_the_own_project(
    sidecar: Sidecar, admins: dict[str, Admin]
) -> None:
    key_id, secret = admins["prj_1"].issue(scopes=["streams:read"])
    assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=secret).status == 200
    assert sidecar.ask("GET", "/v1/projects/prj_2/streams", key=secret).status == 403
    assert [told["id"] for told in admins["prj_1"].call("GET", "keys").json["keys"]] == [key_id]
    assert admins["prj_1"].call("POST", f"keys/{key_id}/revoke").status == 200
    assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=secret).status == 401


@pytest.mark.requirement("K9")
def test_keys_of_other_projects_do_not_exist_for_them(sidecar: Sidecar, admins: dict[str, Admin]) -> None:
    theirs = sidecar.keys.issue("Theirs", tenant="prj_2", scopes=("streams:read",))
    mine = admins["prj_1"]
    assert theirs.id not in mine.call("GET", "keys").body.decode()
    assert mine.call("GET", f"keys/{theirs.id}").status == 404
    assert mine.call("PATCH", f"keys/{theirs.id}", {"name": "Mine"}).status == 404
    assert mine.call("POST", f"keys/{theirs.id}/rotate", {}).status == 404
    assert [mine.call("POST", f"keys/{theirs.id}/{verb}").status for verb in ("disable", "revoke")] == [404, 404]
    assert mine.call("POST", "keys", {"name": "Theirs", "tenant": "prj_2"}).status in (400, 403)
    assert sidecar.ask("GET", "/v1/projects/prj_2/streams", key=theirs).status == 200
    assert [told["id"] for told in admins["prj_2"].call("GET", "keys").json["keys"]] == [theirs.id]


@pytest.mark.requirement("K3")
def test_a_key_created_without_scopes_has_all_of_them(sidecar: Sidecar, admins: dict[str, Admin]) -> None:
    issued = admins["prj_1"].call("POST", "keys", {"name": "Everything"})
    key = issued.json["key"]
    assert (issued.status, key["scopes"], key["tenant"]) == (201, ["*"], "prj_1")
    assert sidecar.ask("POST", "/v1/projects/prj_1/vods", key=issued.json["secret"]).status == 200
    assert sidecar.ask("POST", "/v1/projects/prj_2/vods", key=issued.json["secret"]).status == 403


@pytest.mark.requirement("K3")
@pytest.mark.parametrize("scopes", [{}, {"scopes": ["*"]}, {"scopes": ["vod:*"]}])
def test_a_token_that_may_not_grant_a_wildcard_grants_none(admins: dict[str, Admin], scopes: dict[str, object]) -> None:
    refused = admins["prj_2"].call("POST", "keys", {"name": "Everything", **scopes})
    assert (refused.status, refused.json["errors"][0]["pointer"]) == (403, "/scopes/0")
