"""Which keys reach a route, without a request: as the gate's own rule decides on one."""

from itertools import product
from pathlib import Path

import pytest

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.core.errors import Denied
from sidecar.core.model import EVERY, ApiKey, Principal, Route
from sidecar.core.policy import authorize
from sidecar.core.routing import Match
from sidecar.gate.explain import allowed_routes
from sidecar.gate.reach import bar_of, closed_routes, opens, scopes_used
from tests.unit.keys.making import a_key

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
keys: {environments: {live: hv_live_, test: hv_test_}, pass_through: [{header: X-Session}]}
scopes:
  read: Read
  write: {includes: [read]}
  pay: Pay
routes:
  - GET /public: {public: true}
  - GET /denied: {deny: true}
  - GET /any-key: {}
  - GET /read: {scopes: [read]}
  - GET /either: {scopes: [write, pay]}
  - GET /both: {all_scopes: [write, pay]}
  - GET /tenants/{tenant}: {tenant: tenant}
  - GET /environments/{env}: {environment: env}
  - GET /live: {environments: [live]}
  - GET /browsers: {pass_through: only}
"""
SCOPES = ((), ("read",), ("write",), ("pay",), ("write", "pay"), ("*",), ("gone",))
PLACES = (None, "acme", EVERY)
ENVIRONMENTS = (None, "live", "test", EVERY)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    file: Path = tmp_path_factory.mktemp("reach") / "sidecar.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    return load(str(file), environ={})


def route(config: Config, path: str) -> Route:
    return next(route for route in config.routes if route.pattern == path)


def gate_lets_pass(config: Config, route: Route, key: ApiKey) -> bool:
    """With a path that names the key's own tenant and environment, where the key has them."""
    principal = Principal(key=key, scopes=config.catalogue.expand(key.scopes))
    try:
        authorize(Match(route, key.tenant or "nobody's", key.environment or "none"), principal, foreign=False)
    except Denied:
        return False
    return True


def test_a_key_reaches_just_those_routes_that_the_gate_lets_it_pass(config: Config) -> None:
    seen = set()
    for scopes, tenant, environment in product(SCOPES, PLACES, ENVIRONMENTS):
        key = a_key(scopes=scopes, tenant=tenant, environment=environment)
        allowed = [route for route in config.routes if gate_lets_pass(config, route, key)]
        assert allowed_routes(config, key) == allowed, key
        closed = [one.route for one in closed_routes(config, key)]
        assert closed == [route for route in config.routes if route not in allowed]
        seen.add(len(allowed))
    assert len(seen) > 3


def test_exactly_the_listed_scopes_open_a_route(config: Config) -> None:
    for scopes, tenant in product(SCOPES, PLACES):
        key = a_key(scopes=scopes, tenant=tenant, environment="live")
        for one in closed_routes(config, key):
            opening = [
                name
                for name in config.catalogue.scopes
                if gate_lets_pass(config, one.route, a_key(scopes=(*scopes, name), tenant=tenant, environment="live"))
            ]
            assert list(one.opened_by) == opening, (key, one.route.name)


def test_routes_that_scopes_do_not_open_are_explained(config: Config) -> None:
    key = a_key(scopes=("*",), tenant=None, environment="test")
    assert {one.route.pattern: one.bar for one in closed_routes(config, key)} == {
        "/denied": "nobody may pass",
        "/tenants/{tenant}": "the key has no tenant",
        "/live": "only keys of live may pass",
        "/browsers": "no key may pass",
    }
    assert bar_of(route(config, "/environments/{env}").policy, a_key(environment=None)) == "the key has no environment"


def test_what_is_missing_is_what_the_route_names(config: Config) -> None:
    key = a_key(scopes=("pay",), tenant="acme", environment="live")
    missing = {one.route.pattern: sorted(one.missing) for one in closed_routes(config, key)}
    assert missing == {"/denied": [], "/read": ["read"], "/both": ["write"], "/browsers": []}


def test_a_grant_counts_if_it_includes_what_the_route_requires(config: Config) -> None:
    policy = route(config, "/read").policy
    assert scopes_used(policy, ["write", "pay", "*", "gone"], config.catalogue) == ["write", "*"]
    assert opens(policy, a_key(scopes=("write",)), config.catalogue.expand(["write"]))
