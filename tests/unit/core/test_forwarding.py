"""Who the client is behind proxies, and what a quota by address counts."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.client_address import TrustedProxies, address_subject

PROXY = "10.0.0.1"


def proxies(*networks: str, header: bytes = b"x-forwarded-for") -> TrustedProxies:
    return TrustedProxies([ip_network(network) for network in networks or ("10.0.0.0/8", "fd00::/8")], header)


def client(*lines: bytes, peer: str = PROXY, header: bytes = b"x-forwarded-for") -> str:
    return proxies(header=header).client_address(peer, {header: list(lines)})


def test_no_peer_is_trusted_by_default() -> None:
    nobody = TrustedProxies([], b"x-forwarded-for")
    assert not nobody.trusts("127.0.0.1")
    assert nobody.client_address("127.0.0.1", {b"x-forwarded-for": [b"9.9.9.9"]}) == "127.0.0.1"


def test_an_untrusted_peers_address_is_that_of_its_socket() -> None:
    assert client(b"9.9.9.9", peer="203.0.113.5") == "203.0.113.5"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"198.51.100.7"], "198.51.100.7"),
        ([b"6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        ([b"6.6.6.6", b"198.51.100.7"], "198.51.100.7"),
        ([b"6.6.6.6, 198.51.100.7, 10.2.2.2"], "198.51.100.7"),
        ([b"198.51.100.7 ,10.2.2.2\t, 10.3.3.3"], "198.51.100.7"),
        ([b"10.2.2.2, 10.3.3.3"], "10.2.2.2"),
        ([b"2001:db8::1"], "2001:db8::1"),
        ([b"[2001:db8::1]:4711"], "2001:db8::1"),
        ([b"198.51.100.7:4711"], "198.51.100.7"),
        ([b"::ffff:198.51.100.7"], "198.51.100.7"),
        ([b"6.6.6.6, ::ffff:10.9.9.9"], "6.6.6.6"),
        ([], PROXY),
    ],
)
def test_the_right_most_untrusted_address_counts(lines: list[bytes], expected: str) -> None:
    assert client(*lines) == expected


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"unknown",
        b"_hidden",
        b"1.2.3",
        b"1.2.3.4.5",
        b"01.2.3.4",
        b"1.2.3.4:x",
        b"1.2.3.4:",
        b"[::1]evil",
        b"[1.2.3.4]",
        b"[::1",
        b"fe80::1%eth0",
        b"1.2.3.4/8",
        b'"1.2.3.4"',
        b"\xd9\xa1.1.1.1",
        b"1.2.3.4 5",
    ],
)
def test_a_malformed_entry_matches_nothing_and_ends_the_walk(entry: bytes) -> None:
    assert client(b"6.6.6.6, " + entry) == PROXY
    assert client(b"6.6.6.6, " + entry + b", 10.4.4.4") == "10.4.4.4"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"for=198.51.100.7", "198.51.100.7"),
        (b'proto=https;FOR="[2001:db8::1]:80";by=x', "2001:db8::1"),
        (b"for=6.6.6.6, for=198.51.100.7;host=h", "198.51.100.7"),
        (b"for=6.6.6.6, for=unknown", PROXY),
        (b"for=6.6.6.6, for=_secret", PROXY),
        (b"for=6.6.6.6, by=1.2.3.4", PROXY),
        (b"198.51.100.7", PROXY),
    ],
)
def test_forwarded_is_read_if_proxies_use_it(line: bytes, expected: str) -> None:
    assert client(line, header=b"forwarded") == expected


def test_the_header_that_proxies_do_not_speak_is_never_believed() -> None:
    assert proxies().client_address(PROXY, {b"forwarded": [b"for=6.6.6.6"]}) == PROXY


@given(st.binary(max_size=60), st.sampled_from([b"x-forwarded-for", b"forwarded"]))
def test_no_header_breaks_the_walk(value: bytes, header: bytes) -> None:
    assert client(value, peer=PROXY, header=header)


def test_peers_in_any_spelling_are_the_network_that_they_are_in() -> None:
    trusted = proxies("10.0.0.0/8", "fe80::/10")
    for peer in ("10.1.1.1", "::ffff:10.1.1.1", "fe80::1%eth0", "fe80::1"):
        assert trusted.trusts(peer)
    for peer in ("11.1.1.1", "", "unix", "::ffff:11.1.1.1", "10.1.1"):
        assert not trusted.trusts(peer)


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("", ""),
    ],
)
def test_a_quota_by_address_counts_a_whole_64(address: str, subject: str) -> None:
    assert address_subject(address) == subject


@pytest.mark.parametrize("network", ["::ffff:10.0.0.0/104", "10.0.0.0/8"])
@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_an_ipv4_mapped_address_is_the_ipv4_address_in_networks_too(network: str, peer: str) -> None:
    assert proxies(network).trusts(peer)
    assert not proxies(network).trusts(peer.replace("10.", "11.", 1))


def test_a_network_that_holds_more_than_mapped_addresses_stays_one_of_ipv6() -> None:
    everyone = proxies("::/0")
    assert everyone.trusts("2001:db8::1")
    assert not everyone.trusts("10.1.2.3")
