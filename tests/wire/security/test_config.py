"""A broken configuration, and the time zone, change nothing."""

import json
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.harness.running import StartSidecar
from tests.wire.reload.changing import CHANGED, CONFIG, Changing
from tests.wire.reload.conftest import changing, start_changing

__all__ = ["changing", "start_changing"]  # fixtures

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "broken YAML": CHANGED + "routes: [\n",
    "an unknown field": CHANGED + "realms: x\n",
    "a duplicate key": CHANGED + "realm: again\n",
    "a dangling scope": CHANGED.replace("{scopes: [read]}", "{scopes: [raed]}"),
    "an alias bomb": CHANGED + BOMB,
    "no UTF-8": (CHANGED + "x").encode() + b"\xff\xfe\n",
    "nothing in it": "",
    "a route twice": CHANGED.replace("GET /open", "GET /few"),
    "a list": "- a\n- b\n",
}


@pytest.mark.requirement("R5.1")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_keeps_the_previous_configuration(changing: Changing, kind: str) -> None:
    changing.write(BROKEN[kind])
    [line] = changing.told("not taken")
    where = rf"{re.escape(str(changing.file))}:[0-9]+:[0-9]+: "
    if BROKEN[kind]:
        assert re.search(where, line), line
    assert changing.realm() == "before"
    assert (changing.reloads("failure"), changing.reloads("success")) == (1, 0)
    assert changing.sidecar.metric("sidecar_config_last_reload_successful") == 0
    ready = changing.verbose()
    assert ready.status == 200
    assert f"config: not taken, the one before stays in force: {changing.file}" in ready.body.decode()


@pytest.mark.requirement("R5.1")
def test_a_missing_file_keeps_the_previous_configuration(changing: Changing) -> None:
    changing.file.unlink()
    [line] = changing.told("not taken")
    assert line.endswith(f"{changing.file}: cannot be read: No such file or directory")
    assert changing.realm() == "before"
    changing.taken(CHANGED)
    assert changing.realm() == "after"


@pytest.mark.requirement("R5.1")
@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a link to itself", "endless"])
def test_a_path_that_is_not_a_file_is_ignored_until_there_is_a_file(changing: Changing, kind: str) -> None:
    """Nothing writes to the pipe: waiting for it would last for ever, and also block shutdown."""
    changing.file.unlink()
    match kind:
        case "a named pipe":
            os.mkfifo(changing.file)
        case "a folder":
            changing.file.mkdir()
        case "a link to itself":
            changing.file.symlink_to(changing.file)
        case "endless":
            changing.file.symlink_to("/dev/zero")
    changing.told("not taken")
    assert changing.realm() == "before"
    if kind == "a folder":
        changing.file.rmdir()
    changing.taken(CHANGED)
    assert changing.realm() == "after"
    assert changing.sidecar.stop() == 0


@pytest.mark.requirement("R5.1")
def test_a_broken_file_is_reported_once_and_again_on_request(changing: Changing) -> None:
    changing.write(BROKEN["an unknown field"])
    changing.told("not taken")
    changing.hang_up()
    assert len(changing.told("not taken", count=2)) == 2
    assert changing.reloads("failure") == 2


@pytest.mark.requirement("R5.1")
def test_a_broken_config_map_keeps_the_previous_configuration(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    for name, text in (("..1", CONFIG), ("..2", BROKEN["a duplicate key"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sidecar.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    (tmp_path / "..data").symlink_to("..1")
    file = tmp_path / "sidecar.yaml"
    file.symlink_to("..data/sidecar.yaml")
    changed = Changing(sidecar=start_sidecar(file), file=file)
    (tmp_path / "..data_tmp").symlink_to("..2")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    changed.told("not taken")
    assert changed.realm() == "before"


@pytest.mark.requirement("R5.1")
def test_readiness_does_not_reveal_the_files_content(changing: Changing) -> None:
    changing.write(CHANGED + "s3cret: 1\n")
    changing.told("not taken")
    assert "s3cret" not in changing.verbose().body.decode()


ZONES = [("Pacific/Kiritimati", "tr_TR.UTF-8"), ("America/St_Johns", "de_DE.UTF-8"), ("garbage", "xx_YY.broken")]
CLOCKED = """\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
scopes: {insert: Insert}
quotas: {daily: {limit: 2, per: day}}
routes:
- GET /items: {scopes: [insert], quotas: [daily]}
- GET /me: {respond: {expires_at: "{key.expires_at}"}}
"""


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(("zone", "locale"), ZONES)
def test_zone_and_locale_change_nothing(start_sidecar: StartSidecar, zone: str, locale: str) -> None:
    """Days are UTC days, times are in UTC, and `i` is the lower case of `I`."""
    sidecar = start_sidecar(CLOCKED, environ={"TZ": zone, "LC_ALL": locale, "LANG": locale})
    key = sidecar.keys.issue("k", scopes=("insert",), expires="90d")
    response = sidecar.ask("GET", "/items", [("IF-NONE-MATCH", "x")], key=key)
    reset = int(response.header("X-RateLimit-Reset"))
    assert response.status == 200
    assert reset % 86_400 == 0
    assert 0 < reset - time.time() <= 86_400
    expires_at = datetime.fromisoformat(sidecar.ask("GET", "/me", key=key).json()["expires_at"])
    assert expires_at.tzinfo is not None
    assert abs(expires_at.timestamp() - time.time() - 90 * 86_400) < 60
    line = sidecar.logged(lambda told: told["route"] == "GET /items")
    logged = next(datetime.fromisoformat(str(told)) for name, told in line.items() if name in ("at", "time"))
    assert abs((logged - datetime.now(UTC)).total_seconds()) < 60
    assert "error" not in json.dumps(line)
