"""`paths: {encoded_slash: keep}`: %2F is a character of its segment, and opens nothing that it would not otherwise."""

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.harness.targets import CLIMBS, DISGUISES, KEPT_SLASH_CLIMBS, MALFORMED, OTHER_CLIMBS, OVERLONG, TWICE_DECODED
from tests.wire.forward_auth.asking import DIALECTS, Decider, start_decider, status_of

SPLIT = """\
listen: 127.0.0.1:0
decision: 127.0.0.1:0
upstream: {url: "http://127.0.0.1:1", strip_prefix: "", add_prefix: ""}
store: sqlite:///nowhere
trusted_proxies: [127.0.0.1]
keys: {environments: {live: hv_live_}, failures: off}
scopes: {read: Read, admin: Administer}
routes:
  - "* /public/**": {public: true}
  - "* /admin/**": {scopes: [admin]}
  - GET /api/v4/projects/{id}: {scopes: [read]}
  - GET /api/v4/projects/{id}/issues: {scopes: [read]}
  - "* /api/v4/projects/{id}/members/**": {scopes: [admin]}
  - GET /queues/{vhost}/{name}: {scopes: [read]}
  - GET /of/{org}/x: {tenant: org}
"""
KEEP = SPLIT + "paths: {encoded_slash: keep}\n"
KEPT = [
    "/api/v4/projects/group%2Fproject/issues",
    "/api/v4/projects/group%2fproject/issues?page=2",
    "/api/v4/projects/group%2Fsub%2Fproject",
    "/api/v4/projects/@scope%2Fname",
    "/api/v4/projects/a%20b%2F.c%2F50%25",
    "/api/v4/projects/https%3A%2F%2Fexample.test%2F",
    "/queues/%2F/jobs",
]
CLOSED = [
    "/api/v4/projects/x%2Fmembers/1",
    "/api/v4/projects/x/members%2F1",
    "/api/v4/projects/x%252Fmembers%252F1",
    "/api/v4/projects/x%252Fissues",
    "/api/v4/projects/group%252Fproject/issues",
    "/api/v4/projects/group%25%32%46project/issues",
    "/api/v4/projects/group%5Cproject/issues",
    "/api/v4/projects/group%255Cproject/issues",
    "/api/v4/projects/x%2F..%2Fy/issues",
    "/api/v4/projects/..%2F..%2Fadmin/issues",
    "/api/v4/projects/x%2F%2e%2e/issues",
    "/api/v4/projects/x%2F..;y/issues",
    "/api/v4/projects/x%2Fy/../issues",
    "/api/v4/projects/x%2Fy%2500/members/1",
    "/api/v4/projects%2Fx/issues",
    "/api%2Fv4%2Fprojects%2Fx",
    "/public%2Fx",
    "/admin%2Fx",
    "/%2Fadmin/x",
    "/%2Fpublic/x",
    "/queues/%2F/a/b",
    "/queues/%2F%2F",
    "/of/acme%2Fx/x",
    "/of/x%2Facme/x",
    "/of/%2Facme/x",
    "/of/acme%2F/x",
    "/of/acme%EF%BF%BFx/x",
]


@pytest.fixture(scope="module")
def keeping(start_shared_sidecar: StartSidecar) -> Decider:
    return start_decider(start_shared_sidecar, KEEP, {"read": "read", "admin": "admin"})


@pytest.fixture(scope="module")
def splitting(start_shared_sidecar: StartSidecar) -> Decider:
    return start_decider(start_shared_sidecar, SPLIT, {"read": "read", "admin": "admin"})


@pytest.fixture(autouse=True)
def _ready(upstream: Upstream) -> None:
    """Nothing is recorded."""


def told(decider: Decider, target: str, key: str) -> set[int]:
    return {status_of(decider.ask(dialect, "GET", target, key=key)) for dialect in DIALECTS}


def asked(decider: Decider, target: str, key: str = "") -> int:
    return decider.sidecar.ask("GET", target, decider.credential(key)).status


@pytest.mark.requirement("S1.8")
@pytest.mark.parametrize("target", KEPT)
def test_an_encoded_slash_is_a_character_of_one_segment(keeping: Decider, upstream: Upstream, target: str) -> None:
    assert asked(keeping, target, "read") == 200
    assert upstream.last().target == target
    assert (asked(keeping, target, "admin"), asked(keeping, target)) == (403, 401)
    assert [told(keeping, target, key) for key in ("read", "admin", "")] == [{200}, {403}, {401}]


@pytest.mark.parametrize("target", KEPT)
def test_without_the_option_it_splits_a_segment(splitting: Decider, upstream: Upstream, target: str) -> None:
    for key in ("read", "admin", ""):
        assert asked(splitting, target, key) in {400, 401, 403}
        assert told(splitting, target, key) <= {400, 401, 403}
    assert upstream.requests() == []


@pytest.mark.requirement("S1.2")
@pytest.mark.parametrize("target", CLOSED)
def test_lookalikes_of_a_kept_slash_open_nothing(keeping: Decider, upstream: Upstream, target: str) -> None:
    assert asked(keeping, target, "read") in {400, 403}
    assert asked(keeping, target) in {400, 401}
    assert told(keeping, target, "read") <= {400, 403}
    assert upstream.requests() == []


@pytest.mark.requirement("S1.1")
@pytest.mark.parametrize("target", [*KEPT_SLASH_CLIMBS, *CLIMBS, *OTHER_CLIMBS, *TWICE_DECODED])
@pytest.mark.parametrize("setting", ["keep", "split"])
def test_no_climb_passes_in_either_setting(
    keeping: Decider, splitting: Decider, upstream: Upstream, setting: str, target: str
) -> None:
    """With `split`, dots that stay below /public are of one route."""
    decider = keeping if setting == "keep" else splitting
    for key in ("read", "admin", ""):
        status = asked(decider, target, key)
        if setting == "keep" or target not in KEPT_SLASH_CLIMBS:
            assert status in {400, 401, 403}
            assert told(decider, target, key) <= {400, 401, 403}
    assert all(seen.target in KEPT_SLASH_CLIMBS for seen in upstream.requests())


@pytest.mark.requirement("S1.2")
@pytest.mark.parametrize("target", DISGUISES)
def test_no_disguise_opens_anything_where_slashes_are_kept(keeping: Decider, upstream: Upstream, target: str) -> None:
    assert asked(keeping, target, "read") in {400, 403}
    assert asked(keeping, target) in {400, 401}
    assert upstream.requests() == []


@pytest.mark.requirement("S1.7")
@pytest.mark.parametrize("piece", [*MALFORMED, *OVERLONG])
def test_forbidden_bytes_are_400_even_with_a_kept_slash(keeping: Decider, upstream: Upstream, piece: str) -> None:
    for target in (f"/public/a%2F{piece}", f"/public/{piece}%2Fa", f"/api/v4/projects/a%2F{piece}/issues"):
        assert asked(keeping, target, "read") == 400
    assert upstream.requests() == []
