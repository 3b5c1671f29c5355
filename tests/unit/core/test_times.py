import pytest

from sidecar.core.units import microseconds, rfc3339

TIMES = {
    "1970-01-01T00:00:00Z": 0,
    "2027-01-31T12:00:00Z": 1_801_396_800_000_000,
    "9999-12-31T23:59:59.999999Z": 253_402_300_799_999_999,
}


@pytest.mark.parametrize(("text", "at"), TIMES.items())
def test_a_time_round_trips_to_the_microsecond(text: str, at: int) -> None:
    assert (microseconds(text), rfc3339(at)) == (at, text)


def test_a_date_is_its_first_moment_in_utc_and_an_offset_counts() -> None:
    assert rfc3339(microseconds("2027-01-31")) == "2027-01-31T00:00:00Z"
    assert rfc3339(microseconds("2027-01-31T01:30:00+02:00")) == "2027-01-30T23:30:00Z"


@pytest.mark.parametrize("text", ["", "soon", "2027-02-30", "10000-01-01", "2027-01-31T25:00:00Z"])
def test_an_invalid_time_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        microseconds(text)
