"""A reload from observing to enforcing, and back."""

from tests.harness.recording import Upstream
from tests.wire.reload.changing import CONFIG, Changing


def test_the_mode_applies_from_the_next_request_even_on_open_connections(
    changing: Changing, upstream: Upstream
) -> None:
    """The same bytes each time, so that the request is a known one."""
    with changing.sidecar.connect() as kept:
        for turn in range(3):
            changing.taken(CONFIG + "mode: observe\n", count=2 * turn + 1)
            assert [kept.ask("GET", "/items/1").status for _ in range(3)] == [200, 200, 200]
            assert changing.sidecar.metric("sidecar_observing") == 1
            assert "mode: only observed, not enforced: everything" in changing.verbose().body.decode()
            changing.taken(CONFIG, count=2 * turn + 2)
            assert [kept.ask("GET", "/items/1").status for _ in range(3)] == [401, 401, 401]
            assert changing.sidecar.metric("sidecar_observing") == 0
    assert len(upstream.requests()) == 9
