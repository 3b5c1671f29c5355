"""The sections `access_log` and `tracing`."""

from itertools import takewhile

import pytest

from sidecar.config.document import AccessLogSettings, Tracing
from sidecar.config.reload import without_restart
from sidecar.limiter.redis.url import RedisUrl
from tests.unit.config.conftest import MINIMAL, Complaining, Loading
from tests.unit.config.test_examples import EXAMPLE

COLLECTOR = "http://127.0.0.1:4318"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("json", AccessLogSettings()),
        ("combined", AccessLogSettings(format="combined")),
        ("off", None),
        ("{format: off}", None),
        ("{sample_successes: 0.1}", AccessLogSettings(sample_successes=0.1)),
        ("{sample_successes: 0}", AccessLogSettings(sample_successes=0)),
        ("{format: combined, query: redacted}", AccessLogSettings(format="combined", query="redacted")),
    ],
)
def test_the_access_log_is_a_word_or_its_settings(
    loading: Loading, written: str, meant: AccessLogSettings | None
) -> None:
    assert loading(MINIMAL + f"access_log: {written}\n").access_log == meant
    assert loading(MINIMAL).access_log == AccessLogSettings()


def test_tracing_is_off_until_a_collector_is_named(loading: Loading) -> None:
    assert loading(MINIMAL).tracing is None
    tracing = loading(MINIMAL + f"tracing: {{endpoint: '{COLLECTOR}'}}\n").tracing
    assert tracing == Tracing(endpoint=f"{COLLECTOR}/v1/traces")


def test_every_option_of_tracing_is_read(loading: Loading) -> None:
    text = (
        "tracing: {endpoint: 'https://c/otlp', sample: 0.25, parent: nobody, service: a b, timeout: 500ms,"
        " headers: {Authorization: 'Bearer ${T}'}}\n"
    )
    tracing = loading(MINIMAL + text, environ={"T": "the-secret"}).tracing
    assert tracing == Tracing(
        endpoint="https://c/otlp", sample=0.25, parent="nobody", service="a b", timeout=0.5,
        headers={"Authorization": "Bearer the-secret"},
    )  # fmt: skip
    assert "the-secret" not in repr(tracing)


def test_a_share_may_come_from_a_variable(loading: Loading) -> None:
    text = MINIMAL + f"tracing: {{endpoint: '{COLLECTOR}/', sample: '${{SHARE}}'}}\n"
    tracing = loading(text, environ={"SHARE": "0.5"}).tracing
    assert tracing is not None
    assert (tracing.endpoint, tracing.sample) == (f"{COLLECTOR}/v1/traces", 0.5)


def commented(first: str) -> str:
    """A section of the example that stands in comments, from the line that begins so."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"# {first}"))
    section = [lines[start], *takewhile(lambda line: line.startswith("#   "), lines[start + 1 :])]
    return "".join(f"{line.removeprefix('# ')}\n" for line in section)


def test_the_commented_example_of_tracing_is_valid(loading: Loading) -> None:
    tracing = loading(MINIMAL + commented("tracing:"), environ={"OTLP_TOKEN": "t"}).tracing
    assert tracing is not None
    assert (tracing.service, tracing.headers) == ("sidecar", {"Authorization": "Bearer t"})


def test_the_commented_example_of_a_shared_limiter_is_valid(loading: Loading) -> None:
    text = MINIMAL + commented("limiter:   ").replace("redis://:", "rediss://:")  # An authority is for TLS alone.
    limiter = loading(text, environ={"REDIS_PASSWORD": "the-secret"}).limiter
    assert isinstance(limiter.url, RedisUrl)
    assert (limiter.url.password, limiter.timeout, limiter.outage, limiter.replicas) == ("the-secret", 0.05, "local", 1)
    assert "the-secret" not in repr(limiter)


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("access_log: {sample_successes: 1.5}", "access_log.sample_successes: must be at most 1"),
        ("access_log: {sample_successes: -0.1}", "access_log.sample_successes: must be at least 0"),
        ("access_log: {sample_successes: .nan}", "access_log.sample_successes: must be a number such as 0.1"),
        ("access_log: {sample_successes: 1e-1}", "access_log.sample_successes: must be a number such as 0.1"),
        ("access_log: {sample_successes: [1]}", "access_log.sample_successes: must be a number, not a list"),
        ("access_log: {format: jsn}", "access_log.format: must be combined, json or off (did you mean 'json'?)"),
        ("access_log: {query: all}", "access_log.query: must be none or redacted"),
        ("tracing: {}", "tracing.endpoint: missing"),
        ("tracing: {endpoint: 'grpc://c:4317'}", "tracing.endpoint: must be the OTLP/HTTP address"),
        ("tracing: {endpoint: 'http://c:x'}", "tracing.endpoint: is not a URL"),
        ("tracing: {endpoint: 'http://u:p@c:1'}", "tracing.endpoint: must hold no user, query or fragment"),
        ("tracing: {endpoint: 'http://c:1', headers: {Host: x}}", "tracing.headers: must not hold Host"),
        ("tracing: {endpoint: 'http://c:1', headers: {A: \"x\\ny\"}}", "tracing.headers.A: must be one line"),
        ("tracing: {endpoint: 'http://c:1', sample: much}", "tracing.sample: must be a number such as 0.1"),
        ("tracing: {endpoint: 'http://c:1', timeout: 0s}", "tracing.timeout: must be more than 0"),
    ],
)
def test_their_errors_are_reported(problems: Complaining, section: str, complaint: str) -> None:
    [problem] = problems(MINIMAL + section + "\n")
    assert problem.startswith("4:")
    assert complaint in problem


def test_they_wait_for_a_restart(loading: Loading) -> None:
    running = loading(MINIMAL)
    wanted = loading(MINIMAL + f"access_log: combined\ntracing: {{endpoint: '{COLLECTOR}'}}\n")
    config, kept = without_restart(running, wanted)
    assert set(kept) == {"access_log", "tracing"}
    assert (config.access_log, config.tracing) == (AccessLogSettings(), None)
