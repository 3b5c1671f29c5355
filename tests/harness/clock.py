"""Time for tests: it only changes when it is set."""


class Clock:
    """The `core.units.Clock` that a test moves by hand. now: Unix seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def seconds(self) -> float:
        return self.now

    def micros(self) -> int:
        return round(self.now * 1_000_000)

    def monotonic(self) -> float:
        return self.now
