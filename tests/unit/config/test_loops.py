"""An upstream that is the sidecar itself is found before any request goes round."""

import json

import pytest

from tests.unit.config.conftest import Complaining, Loading

LOOPS = [
    ("127.0.0.1:8080", "http://127.0.0.1:8080"),
    ("127.0.0.1:8080", "https://127.0.0.1:8080/v1"),
    ("127.0.0.1:8080", "http://localhost:8080"),
    ("localhost:8080", "http://127.0.0.1:8080"),
    ("127.0.0.1:8080", "http://0.0.0.0:8080"),
    ("0.0.0.0:8080", "http://127.0.0.1:8080"),
    ("0.0.0.0:8080", "http://localhost:8080"),
    ("0.0.0.0:80", "http://127.0.0.2"),
    ("[::]:8080", "http://[::1]:8080"),
    ("[::]:8080", "http://127.0.0.1:8080"),
    ("[::1]:443", "https://localhost"),
    ("API.test:8080", "http://api.TEST:8080"),
    ("10.0.0.5:8080", "http://10.0.0.5:8080"),
    ("127.0.0.1:8080", "http://[::ffff:127.0.0.1]:8080"),
    ("0.0.0.0:8080", "http://[::FFFF:7f00:1]:8080"),
    ("[::ffff:127.0.0.1]:8080", "http://127.0.0.1:8080"),
    ("unix:/run/s.sock", "unix:/run/s.sock"),
    ("unix:/run/s.sock", "unix:/run/./sidecar/..//s.sock"),
]
APART = [
    (["[::]:8080", "10.0.0.5:8080"], "http://127.0.0.1:8080"),
    ("127.0.0.1:8080", "http://127.0.0.1:8000"),
    ("127.0.0.1:8080", "http://127.0.0.2:8080"),
    ("127.0.0.1:8080", "http://10.0.0.5:8080"),
    ("127.0.0.1:8080", "http://[::1]:8080"),
    ("0.0.0.0:8080", "http://[::1]:8080"),
    ("0.0.0.0:8080", "http://10.0.0.5:8080"),
    ("0.0.0.0:8080", "http://service:8080"),
    ("127.0.0.1:0", "http://127.0.0.1:1"),
    ("unix:/run/s.sock", "unix:/run/service.sock"),
    ("unix:/run/s.sock", "http://127.0.0.1:8080"),
]
STORE = "store: sqlite:///tmp/keys.db\n"


@pytest.mark.parametrize(("listen", "upstream"), LOOPS)
def test_an_upstream_at_the_address_of_the_data_listener_is_an_error(
    problems: Complaining, listen: str, upstream: str
) -> None:
    (line,) = problems(f"listen: '{listen}'\n{STORE}upstream: '{upstream}'\n")
    assert line == "3:11: upstream: is the sidecar itself, at the address of listen: name the service's own"


@pytest.mark.parametrize("listener", ["ops: 127.0.0.1:9", "admin: 127.0.0.1:9", "decision: 127.0.0.1:9"])
def test_a_listener_at_the_address_of_another_is_an_error(problems: Complaining, listener: str) -> None:
    head = f"listen: 127.0.0.1:1\n{STORE}trusted_proxies: [10.0.0.1]\n"
    (line,) = problems(f"{head}upstream: {{url: 'http://localhost:9'}}\n{listener}\n")
    assert f"upstream: is the sidecar itself, at the address of {listener.partition(':')[0]}" in line


def test_an_address_that_comes_from_outside_the_file_counts_too(problems: Complaining) -> None:
    text = f"listen: 127.0.0.1:1\n{STORE}upstream: http://127.0.0.1:8080\n"
    (line,) = problems(text, overrides={"listen": "127.0.0.1:8080"})
    assert "is the sidecar itself" in line


@pytest.mark.parametrize(("listen", "upstream"), APART)
def test_any_other_is_none(loading: Loading, listen: str | list[str], upstream: str) -> None:
    assert loading(f"listen: {json.dumps(listen)}\n{STORE}upstream: '{upstream}'\n")


def test_a_name_in_via_is_one_word(problems: Complaining, loading: Loading) -> None:
    text = f"listen: 127.0.0.1:1\n{STORE}upstream: {{url: 'http://h', via: %s}}\n"
    (line,) = problems(text % "two words")
    assert line.startswith("3:34: upstream.via: must be a name of RFC 9110")
    assert loading(text % "edge-1").upstream.via == "edge-1"
    assert loading(text.replace(", via: %s", "")).upstream.via is None
