import pytest

from sidecar.core.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2.0), ("15m", 900.0), ("24h", 86400.0), ("90d", 7776000.0), ("0s", 0.0)],
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5s", "1 s", "1M", "1h30m", "2s\n", "٣s", "9999999999s"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number with its unit, such as 500ms"):
        parse_duration(text)


def test_a_number_without_a_unit_is_an_error_that_asks_for_one() -> None:
    with pytest.raises(ValueError, match="did you mean '60s'"):
        parse_duration("60")


@pytest.mark.parametrize(("text", "size"), [("512B", 512), ("64KiB", 65536), ("1MiB", 1 << 20), ("2GiB", 2 << 30)])
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "meant"), [("64KB", "64KiB"), ("64k", "64KiB"), ("1 mb", "1MiB"), ("100", "100B")])
def test_a_size_in_another_unit_is_an_error_that_names_the_units(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "KiB", "-1B", "1.5MiB", "lots"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number with its unit, such as 512B"):
        parse_size(text)
