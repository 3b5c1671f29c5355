"""The `cors` section: of the file, of a route, and switched off there."""

from sidecar.core.model import Cors
from sidecar.gate.compile import sharing
from tests.unit.config.conftest import MINIMAL, Loading

TEXT = (
    MINIMAL
    + """\
cors: {origins: ["https://app.test"], headers: [X-A], expose: [X-B], credentials: true, max_age: 1h}
routes:
  - GET /a: {}
  - GET /b: {cors: {origins: ["*"]}}
  - GET /c: {cors: off, cache: shared}
"""
)


def test_a_route_has_the_files_section_unless_it_has_its_own_or_none(loading: Loading) -> None:
    config = loading(TEXT)
    whole = Cors(
        origins=frozenset({"https://app.test"}),
        headers=("X-A",),
        expose=("X-B",),
        credentials=True,
        max_age_seconds=3600,
    )
    by_name = {route.pattern: route.policy for route in config.routes}
    assert config.cors == by_name["/a"].cors == whole
    assert by_name["/b"].cors == Cors(origins=frozenset({"*"}), headers=("Content-Type",))
    assert by_name["/c"].cors is None


def test_a_route_is_private_to_its_callers_unless_it_says_otherwise(loading: Loading) -> None:
    assert [route.policy.shared_cache for route in loading(TEXT).routes] == [False, False, True]


def test_without_a_section_no_route_has_any(loading: Loading) -> None:
    config = loading(MINIMAL + "routes: [{GET /a: {}}]\n")
    assert (config.cors, config.routes[0].policy.cors) == (None, None)


def test_no_shared_cache_keeps_what_passes_without_a_route(loading: Loading) -> None:
    config = loading(MINIMAL + "keys: {pass_through: [{cookie: session}]}\nunmatched: {pass_through: only}\n")
    rules = sharing(config).of(config.unmatched)
    assert rules is not None
    assert rules.fields((), set(), ()) == ((b"Vary", b"Authorization, Cookie"), (b"Cache-Control", b"private"))
