"""Headers of the PROXY protocol, as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.proxy_protocol import MalformedProxyHeader, ProxyHeader, parse_proxy_header
from tests.harness.proxy_headers import BAD, GOOD, SIGNATURE

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("following", [b"", REQUEST, b"\n", GOOD["v1 TCP4"][0]])
def test_a_header_contains_the_client_and_its_own_length(name: str, following: bytes) -> None:
    header, client = GOOD[name]
    assert parse_proxy_header(header + following) == ProxyHeader(size=len(header), client=client)


@pytest.mark.parametrize("name", GOOD)
def test_any_incomplete_header_waits_for_the_rest(name: str) -> None:
    header, _ = GOOD[name]
    assert {parse_proxy_header(header[:size]) for size in range(len(header))} == {None}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_header_is_refused_before_more_bytes_arrive(name: str) -> None:
    with pytest.raises(MalformedProxyHeader):
        parse_proxy_header(BAD[name])


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_header_stays_invalid_whatever_follows(name: str) -> None:
    with pytest.raises(MalformedProxyHeader):
        parse_proxy_header(BAD[name] + b"\r\n" + REQUEST * 200)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]), st.binary(max_size=300))
def test_any_bytes_are_a_header_an_incomplete_one_or_refused(beginning: bytes, rest: bytes) -> None:
    received = beginning + rest
    try:
        header = parse_proxy_header(received)
    except MalformedProxyHeader:
        return
    assert header is None or 0 < header.size <= len(received)
    if header is None:
        assert len(received) < 16 + 4096


def test_an_incomplete_header_is_never_longer_than_the_longest_header() -> None:
    for endless in (b"PROXY " + b"x" * 200, SIGNATURE + b"\x21\x11\xff\xff" + bytes(200)):
        with pytest.raises(MalformedProxyHeader):
            parse_proxy_header(endless)
