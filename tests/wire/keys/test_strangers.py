"""Well-formed keys that were never issued, many at once."""

import random
from concurrent.futures import ThreadPoolExecutor

from sidecar.core.apikey import KeyFormat
from tests.harness.running import StartSidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
keys: {failures: {limit: 3, per: hour}}
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read], respond: {status: ok}}
"""


def strangers(like: str, count: int) -> list[str]:
    chance = random.Random(5)  # noqa: S311 - nothing is protected by it
    prefix = like[: like.rindex("_") + 1]
    return [KeyFormat().make(prefix, chance.randrange) for _ in range(count)]


def test_a_new_valid_key_gets_through_from_a_penalised_address(
    start_sidecar: StartSidecar,
) -> None:
    sidecar = start_sidecar(CONFIG)
    good = [sidecar.keys.issue(scopes=("read",)).text for _ in range(3)]
    wrong = strangers(good[0], 60)
    keys = [key for i, one in enumerate(good) for key in (*wrong[20 * i : 20 * i + 20], one)]
    with ThreadPoolExecutor(10) as threads:
        statuses = list(threads.map(lambda key: sidecar.ask("GET", "/items/1", key=key).status, keys))
    by_key = dict(zip(keys, statuses, strict=True))
    assert [by_key[key] for key in good] == [200, 200, 200]
    assert sorted(by_key[key] for key in wrong) == [401] * 3 + [429] * 57
