"""How long someone stays signed in."""

from itertools import count

import pytest

from sidecar.admin.auth import IDLE_SECONDS, LONGEST_SECONDS, Sessions
from tests.harness.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    numbers = count()
    return Sessions(clock=clock, new_token=lambda: f"token {next(numbers)}")


def test_a_used_session_continues_and_an_idle_one_ends(sessions: Sessions, clock: Clock) -> None:
    name = sessions.begin(b"digest")
    clock.now += IDLE_SECONDS - 1
    assert sessions.find(name) is not None
    clock.now += IDLE_SECONDS - 1
    assert sessions.find(name) is not None
    clock.now += IDLE_SECONDS
    assert sessions.find(name) is None


def test_no_session_is_longer_than_half_a_day_however_busy(sessions: Sessions, clock: Clock) -> None:
    name, begun = sessions.begin(b"digest"), clock.now
    while clock.now - begun < LONGEST_SECONDS - IDLE_SECONDS / 2:
        assert sessions.find(name) is not None
        clock.now += IDLE_SECONDS / 2
    clock.now = begun + LONGEST_SECONDS
    assert sessions.find(name) is None


def test_setting_the_clock_back_ends_sessions_instead_of_prolonging_them(sessions: Sessions, clock: Clock) -> None:
    name = sessions.begin(b"digest")
    clock.now -= 60
    assert sessions.find(name) is None


def test_sessions_are_bounded_and_the_first_to_go_is_the_oldest(sessions: Sessions) -> None:
    names = [sessions.begin(b"digest of token %d" % number) for number in range(1_001)]
    assert sessions.find(names[0]) is None
    assert sessions.find(names[1]) is not None and sessions.find(names[-1]) is not None


def test_signing_in_repeatedly_only_ends_sessions_of_the_same_token(sessions: Sessions) -> None:
    other = sessions.begin(b"other digest")
    own = [sessions.begin(b"digest") for _ in range(1_100)]
    assert sessions.find(other) is not None
    alive = [name for name in own if sessions.find(name) is not None]
    assert alive == own[-50:]


def test_the_proof_of_one_session_does_not_prove_another(sessions: Sessions) -> None:
    one, other = (sessions.find(sessions.begin(b"digest")) for _ in range(2))
    assert one is not None and other is not None
    assert one.proves(one.proof) and not one.proves(other.proof) and not one.proves("") and not one.proves("\udcff")
