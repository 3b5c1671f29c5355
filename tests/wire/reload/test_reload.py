"""A configuration takes effect without a restart: completely, on the next request, or not at all."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.wire.reload.changing import CHANGED, CONFIG, Changing
from tests.wire.reload.conftest import StartChanging


def test_a_changed_file_is_loaded_automatically(changing: Changing) -> None:
    assert changing.realm() == "before"
    changing.taken(CHANGED)
    assert changing.realm() == "after"


def test_a_file_changed_in_place_is_loaded(changing: Changing) -> None:
    changing.file.write_text(CHANGED, encoding="utf-8")
    changing.told(str(changing.file))
    assert changing.realm() == "after"


def test_a_file_written_in_pieces_is_loaded_when_it_is_complete(start_changing: StartChanging) -> None:
    """Half of it would also be valid, and deny everything."""
    text = CHANGED.replace("{interval: 50ms}", "{interval: 1s}")
    changing = start_changing(text.replace("realm: after", "realm: before"))
    half = text.index("  - GET /few")
    with changing.file.open("w", encoding="utf-8") as file:
        file.write(text[:half])
        file.flush()
        file.write(text[half:])
    changing.told(str(changing.file))
    assert changing.sidecar.ask("GET", "/open").status == 200
    assert changing.reloads("success") == 1


def test_the_swap_of_a_config_map_is_seen(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    """As the kubelet does it: the file links to `..data`, which links to a folder that is replaced by a rename."""
    for name, text in (("..1", CONFIG), ("..2", CHANGED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sidecar.yaml").write_text(text, encoding="utf-8")
        os.utime(tmp_path / name / "sidecar.yaml", (1e9, 1e9))
    (tmp_path / "..data").symlink_to("..1")
    file = tmp_path / "sidecar.yaml"
    file.symlink_to("..data/sidecar.yaml")
    changing = Changing(sidecar=start_sidecar(file), file=file)
    (tmp_path / "..data_tmp").symlink_to("..2")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    changing.told(str(file))
    assert changing.realm() == "after"


def test_an_unwatched_file_is_reloaded_only_on_sighup(start_changing: StartChanging) -> None:
    text = CONFIG.replace("{interval: 50ms}", "{watch: false, interval: 50ms}")
    changing = start_changing(text)
    changing.write(text.replace("realm: before", "realm: after"))
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        assert changing.realm() == "before"
    changing.hang_up()
    changing.told(str(changing.file))
    assert changing.realm() == "after"


def test_whether_the_file_is_watched_can_itself_be_changed(start_changing: StartChanging) -> None:
    changing = start_changing(CONFIG.replace("{interval: 50ms}", "{watch: false}"))
    changing.write(CONFIG)
    changing.hang_up()
    changing.told(str(changing.file))
    changing.taken(CHANGED, count=2)
    assert changing.realm() == "after"


def test_a_reload_is_reported_in_metrics_and_one_log_line(changing: Changing) -> None:
    sidecar, began = changing.sidecar, int(time.time())
    digest = hashlib.sha256(CONFIG.encode()).hexdigest()
    assert sidecar.metric(f'sidecar_config_info{{sha256="{digest}"}}') == 1
    changing.taken(CHANGED)
    digest = hashlib.sha256(CHANGED.encode()).hexdigest()
    assert sidecar.metric(f'sidecar_config_info{{sha256="{digest}"}}') == 1
    assert (changing.reloads("success"), changing.reloads("failure")) == (1, 0)
    assert sidecar.metric("sidecar_config_last_reload_success_timestamp_seconds") >= began
    assert changing.told(str(changing.file)) == [f"sidecar: config: {changing.file} is in force (sha256 {digest[:12]})"]


def test_a_repaired_file_is_loaded_after_a_broken_one(changing: Changing) -> None:
    changing.write(CONFIG + "realm: twice\n")
    changing.told("not taken")
    assert "config: not taken" in changing.verbose().body.decode()
    changing.taken(CHANGED)
    assert changing.realm() == "after"
    assert "config: ok" in changing.verbose().body.decode()
    assert changing.sidecar.metric("sidecar_config_last_reload_successful") == 1


def test_what_needs_a_restart_is_named_and_the_rest_takes_effect(changing: Changing) -> None:
    changing.taken(CHANGED + "access_log: off\nadmin: 127.0.0.1:1\nlimits: {body: 10B}\n")
    [line] = changing.told("needs a restart")
    assert line == "sidecar: config: needs a restart to take effect: access_log"
    assert changing.realm() == "after"
    assert "config: in force but for what needs a restart: access_log" in changing.verbose().body.decode()
    assert changing.verbose().status == 200


def test_limits_hold_for_the_connections_that_come(changing: Changing) -> None:
    key = changing.sidecar.keys.issue("k", scopes=("read",))
    changing.taken(CONFIG + "limits: {header: 100B}\n")
    assert changing.sidecar.ask("GET", "/items/1", [("X-Long", "x" * 200)], key=key).status == 431


def test_taken_quota_stays_taken(changing: Changing) -> None:
    key = changing.sidecar.keys.issue("counted")
    asked = [changing.sidecar.ask("GET", "/few", key=key).status for _ in range(3)]
    changing.taken(CHANGED)
    assert [*asked, changing.sidecar.ask("GET", "/few", key=key).status] == [200, 200, 200, 429]


@pytest.mark.parametrize(("old", "new"), [(", test: hv_test_", ""), ("keys: {", "keys: {length: 60, ")])
def test_a_cached_key_is_judged_by_the_new_rules(changing: Changing, old: str, new: str) -> None:
    """A key of a removed environment, or of another length, is refused although it was just used."""
    key = changing.sidecar.keys.issue("t", environment="test", scopes=("read",))
    assert changing.sidecar.ask("GET", "/items/1", key=key).status == 200
    changing.taken(CONFIG.replace(old, new))
    assert changing.sidecar.ask("GET", "/items/1", key=key).status == 401


def test_the_counts_of_the_key_cache_do_not_go_back(changing: Changing) -> None:
    key = changing.sidecar.keys.issue("k", scopes=("read",))
    for _ in range(3):
        changing.sidecar.ask("GET", "/items/1", key=key)
    before = changing.sidecar.metric('sidecar_key_cache_total{result="hit"}')
    changing.taken(CONFIG.replace(", test: hv_test_", ""))
    assert changing.sidecar.metric('sidecar_key_cache_total{result="hit"}') >= before > 0


def test_new_routes_begin_at_zero_and_old_ones_are_denied(changing: Changing) -> None:
    changing.taken(CONFIG.replace("GET /open", "GET /opened"))
    assert changing.sidecar.ask("GET", "/opened").status == 200
    assert changing.sidecar.ask("GET", "/open").status == 401
    assert 'sidecar_request_seconds_count{route="GET /opened"}' in changing.sidecar.metrics()


def test_settings_of_the_upstream_take_effect(changing: Changing, upstream: Upstream) -> None:
    changing.sidecar.ask("GET", "/open")
    assert upstream.last().target == "/open"
    changing.taken(CONFIG.replace("upstream: http://127.0.0.1:1", "upstream: {url: http://a.test, add_prefix: /v2}"))
    changing.sidecar.ask("GET", "/open")
    assert upstream.last().target == "/v2/open"


def test_a_pepper_that_stored_keys_need_cannot_be_removed(start_changing: StartChanging) -> None:
    imported = "{imported: [{prefix: sk_, hash: sha256-pepper-first, pepper: the salt of the older service}],"
    changing = start_changing(CONFIG.replace("keys: {", f"keys: {imported} "))
    digest = hashlib.sha256(b"the salt of the older servicesk_1").hexdigest()
    record = {"hash": digest, "name": "old", "prefix": "sk_", "environment": "live", "scopes": ["read"]}
    assert changing.sidecar.keys.run("import", "-", stdin=json.dumps(record)).exit_code == 0
    changing.write(CHANGED)
    [line] = changing.told("not taken")
    assert "which is not loaded" in line
    assert changing.sidecar.ask("GET", "/items/1", key="sk_1").status == 200
    assert changing.realm() == "before"


@pytest.mark.parametrize("path", ["/nowhere.pem", "/etc/hostname"])
def test_unusable_certificates_change_nothing(start_changing: StartChanging, path: str) -> None:
    changing = start_changing(upstream_url="https://127.0.0.1:1")
    tls = f"upstream: {{url: https://a.test, tls: {{ca: {path}}}}}"
    changing.write(CHANGED.replace("upstream: http://127.0.0.1:1", tls))
    [line] = changing.told("not taken")
    assert f"cannot use the certificates of upstream.tls: {path}: " in line
    assert changing.realm() == "before"
