"""The machine's clock, which the commands and the composition root hand to everything else.

A file of its own: commands import it without the rest of a running process.
"""

import time


class SystemClock:
    """The `core.units.Clock` of a process."""

    # Without a function of Python between: requests ask several times each.
    seconds = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def micros(self) -> int:
        return time.time_ns() // 1000
