"""How long hypothesis looks: at the same examples every time; FUZZ_EXAMPLES=<factor> asks for more, and new ones."""

import os

from hypothesis import HealthCheck, Phase, settings

_ASKED = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FACTOR = max(_ASKED, 1)


def budget(examples: int) -> settings:
    """Without a deadline: the first example waits for a cold process."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=_ASKED == 0,
        database=None,
        deadline=None,
        # Shrinking asks the process thousands of times; who wants a smaller example asks for more of them.
        phases=(Phase.explicit, Phase.generate, *([Phase.shrink] if _ASKED else [])),
        suppress_health_check=[HealthCheck.too_slow],
    )
