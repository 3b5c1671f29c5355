"""Redis URLs."""

import pytest

from sidecar.limiter.redis.url import RedisUrl, parse_redis_url

GOOD = {
    "redis://h": RedisUrl(hosts=(("h", 6379),)),
    "redis://h:7000/3": RedisUrl(hosts=(("h", 7000),), database=3),
    "REDISS://[::1]:7000": RedisUrl(tls=True, hosts=(("::1", 7000),)),
    "redis://:secret@h": RedisUrl(hosts=(("h", 6379),), password="secret"),
    "redis://secret@h": RedisUrl(hosts=(("h", 6379),), password="secret"),
    "redis://me:a%40b@h": RedisUrl(hosts=(("h", 6379),), username="me", password="a@b"),
    "redis://me:a@/?#:b@h": RedisUrl(hosts=(("h", 6379),), username="me", password="a@/?#:b"),
    "redis+unix:///run/a@b.sock": RedisUrl(path="/run/a@b.sock"),
    "redis+unix://:secret@/run/r.sock": RedisUrl(path="/run/r.sock", password="secret"),
    "redis+sentinel://a,b:7/main/2": RedisUrl(
        kind="sentinel", hosts=(("a", 26379), ("b", 7)), master="main", database=2
    ),
    "rediss+cluster://me:pass@a:1,b": RedisUrl(
        kind="cluster", tls=True, hosts=(("a", 1), ("b", 6379)), username="me", password="pass"
    ),
}


@pytest.mark.parametrize("text", list(GOOD))
def test_a_url_gives_the_address_of_redis(text: str) -> None:
    assert parse_redis_url(text) == GOOD[text]


@pytest.mark.parametrize("text", list(GOOD))
def test_no_password_is_in_the_texts_of_a_url(text: str) -> None:
    url = parse_redis_url(text)
    assert not url.password or url.password not in f"{url} {url!r}"


@pytest.mark.parametrize("text", ["redis://me:secret@", "redis://:secret@h:0", "redis://:secret@a b"])
def test_a_problem_does_not_echo_the_url(text: str) -> None:
    with pytest.raises(ValueError, match="must be memory") as problem:
        parse_redis_url(text)
    assert "secret" not in str(problem.value)
