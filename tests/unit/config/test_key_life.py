"""The options of `keys` about their lifetime: `max_age` and `retire_unused`."""

import pytest

from tests.unit.config.conftest import MINIMAL, Complaining, Loading


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("", None), ("keys: {retire_unused: off}\n", None), ("keys: {retire_unused: 1h}\n", 3600)],
)
def test_unused_keys_retire_early_only_where_it_says_so(loading: Loading, written: str, seconds: float | None) -> None:
    assert loading(MINIMAL + written).keys.retire_unused_seconds == seconds


def test_a_period_shorter_than_the_sampling_of_uses_is_refused_with_the_reason(problems: Complaining) -> None:
    [problem] = problems(MINIMAL + "keys:\n  retire_unused: 59m\n")
    assert problem.startswith("5:18: keys.retire_unused: must be at least 1h: uses reach the store")


@pytest.mark.parametrize("written", ["soon", "6", "0s", "true"])
def test_an_invalid_time_is_refused_at_its_location(problems: Complaining, written: str) -> None:
    [problem] = problems(MINIMAL + f"keys:\n  retire_unused: {written}\n")
    assert problem.startswith("5:18: keys.retire_unused: ")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("", None), ("keys: {max_age: off}\n", None), ("keys: {max_age: 90d}\n", 90 * 86_400)],
)
def test_keys_grow_too_old_only_where_it_says_so(loading: Loading, written: str, seconds: float | None) -> None:
    assert loading(MINIMAL + written).keys.max_age_seconds == seconds


def test_an_age_of_zero_is_refused_at_its_location(problems: Complaining) -> None:
    [problem] = problems(MINIMAL + "keys:\n  max_age: 0s\n")
    assert problem == "5:12: keys.max_age: must be more than 0, or off"
