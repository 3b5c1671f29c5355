"""Strip: which of the client's fields pass, and which pass themselves off as another."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import Denied, Reason
from sidecar.core.headers import HeaderRules, check_host, drop_connection_options, field_value, fold
from tests.harness.headers import (
    BAD_HOSTS,
    FORWARDING,
    FRAMING_DISGUISES,
    HOP_BY_HOP,
    HOSTS,
    STRIPPED,
    STRIPPED_BY_PATTERN,
    disguises,
)

IDENTITY = ("X-Auth-Subject", "X-Auth-Scopes")


def rules(*, strip: Sequence[str] = (), keep: Sequence[str] = ()) -> HeaderRules:
    return HeaderRules(
        identity=IDENTITY,
        strip=strip,
        keep=keep,
        credential=("Authorization", "X-Api-Key"),
        request_id="X-Request-Id",
    )


def kept(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return rules().classify(headers).kept


@given(st.text(alphabet="xX-_.~!#$%&'*+^`|aA1", max_size=30))
def test_folding_is_stable_and_blind_to_case_and_separators(name: str) -> None:
    folded = fold(name.encode())
    assert fold(folded) == folded
    assert fold(name.upper().encode()) == folded
    assert fold(name.replace("-", "_").encode()) == folded


@pytest.mark.parametrize("name", [*IDENTITY, "X-Api-Key", "X-Request-Id"])
def test_no_disguise_of_a_name_that_we_set_passes(name: str) -> None:
    assert [form for form in disguises(name) if kept((form.encode(), b"me"))] == []


@pytest.mark.parametrize("name", [*(name for name, _ in HOP_BY_HOP), "Connection", "Expect"])
def test_fields_between_neighbours_do_not_pass(name: str) -> None:
    assert [form for form in disguises(name) if kept((form.encode(), b"x"))] == []


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding"])
def test_routing_and_framing_fields_are_rewritten(name: bytes) -> None:
    assert kept((name, b"1"), (name.upper(), b"1")) == []


@pytest.mark.parametrize("name", FRAMING_DISGUISES)
def test_a_name_that_passes_itself_off_as_framing_is_refused(name: str) -> None:
    with pytest.raises(Denied) as denied:
        rules().classify(((name.encode(), b"1"),))
    assert denied.value.reason is Reason.BAD_HEADER


@pytest.mark.parametrize("name", [name for name, _ in FORWARDING])
def test_forwarding_fields_from_untrusted_peers_are_removed(name: str) -> None:
    assert [form for form in disguises(name) if kept((form.encode(), b"1"))] == []


def passing(compiled: HeaderRules, names: Sequence[str], *, from_proxy: bool) -> list[str]:
    """Those that reach the upstream."""
    headers = tuple((name.encode(), b"1") for name in names)
    kept = compiled.reclassify(headers, credential=False, from_proxy=from_proxy)
    if not from_proxy:
        assert kept == compiled.classify(headers).kept
    return [name.decode() for name, _ in kept]


@pytest.mark.parametrize("from_proxy", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in [*STRIPPED, *STRIPPED_BY_PATTERN]])
def test_headers_that_services_trust_are_never_passed(name: str, from_proxy: bool) -> None:
    assert passing(rules(), disguises(name), from_proxy=from_proxy) == []


@pytest.mark.parametrize(
    "name", ["X-Origin", "X-Originals", "X-Envoy", "Proxy-Status", "X-Auth-Requests", "X-Accelerate", "Remote-Users"]
)
def test_a_name_that_only_begins_like_one_of_these_passes(name: str) -> None:
    assert passing(rules(), [name], from_proxy=False) == [name]


def test_a_pattern_strips_all_matching_names_in_every_spelling() -> None:
    compiled = rules(strip=["X-Istio-*", "x_b3_*", "X-Foo*"])
    stripped = [*disguises("X-Istio-Attributes"), *disguises("X-B3-TraceId"), "X-Foo", "x.foobar", "X-Istio-"]
    assert passing(compiled, [*stripped, "X-Istio", "X-B3TraceId", "X-Fo-o"], from_proxy=True) == [
        "X-Istio",
        "X-B3TraceId",
        "X-Fo-o",
    ]


@pytest.mark.parametrize("keep", ["X-Auth-Request-User", "X-Auth-Request-*", "x-auth-request-us*"])
def test_what_a_trusted_proxy_sets_passes_from_it_by_its_exact_name_only(keep: str) -> None:
    compiled, names = rules(keep=[keep]), disguises("X-Auth-Request-User")
    exact = [name for name in names if name.lower() == "x-auth-request-user"]
    assert passing(compiled, names, from_proxy=True) == exact
    assert passing(compiled, names, from_proxy=False) == []


@pytest.mark.parametrize(
    "rest", ["Preferred_Username", "-User", "Preferred.Username", "User-_Name", "User--Name", "_User"]
)
def test_a_lookalike_of_a_header_kept_by_pattern_never_passes(rest: str) -> None:
    compiled = rules(keep=["X-Auth-Request-*"])
    assert passing(compiled, [f"X-Auth-Request-{rest}", "X-Auth_Request-User"], from_proxy=True) == []


def test_what_is_kept_from_proxies_is_stripped_from_others_though_nothing_else_names_it() -> None:
    compiled = rules(keep=["X-Gateway-Account", "X_SSL_Verify"])
    names = [*disguises("X-Gateway-Account"), "X_SSL_VERIFY", "X-SSL-Verify"]
    assert passing(compiled, names, from_proxy=False) == []
    assert passing(compiled, ["X-Gateway-Account", "X_SSL_VERIFY", "X-SSL-Verify"], from_proxy=True) == [
        "X-Gateway-Account",
        "X_SSL_VERIFY",
    ]


def test_headers_that_we_set_or_read_are_not_kept_even_if_named() -> None:
    compiled = rules(keep=["X-Auth-*", "X-Request-*", "T*", "X-Api-*"])
    assert passing(compiled, [*IDENTITY, "X-Request-Id", "TE", "X-Api-Key"], from_proxy=True) == []


def test_other_fields_pass_in_their_order_case_and_number() -> None:
    given_headers = ((b"accept", b"b"), (b"X-a", b"1"), (b"COOKIE", b"c"), (b"x-A", b"2"), (b"Accept", b"\xff"))
    assert kept(*given_headers) == list(given_headers)


def test_headers_are_found_only_by_their_exact_name() -> None:
    found = rules().classify(
        ((b"X-API-KEY", b"1"), (b"x_api_key", b"2"), (b"Host", b"h"), (b"Cookie", b"c"), (b"x-request-ID", b"r"))
    )
    assert found.fields == {b"x-api-key": [b"1"], b"host": [b"h"], b"cookie": [b"c"], b"x-request-id": [b"r"]}


def test_a_second_sort_says_the_same_as_the_first() -> None:
    compiled = rules()
    headers = ((b"X-Auth-Subject", b"1"), (b"Accept", b"2"), (b"Host", b"h"), (b"Y" * 500, b"long"))
    assert compiled.classify(headers) == compiled.classify(headers)


def test_more_names_than_are_remembered_change_nothing() -> None:
    compiled = rules()
    for number in range(5000):
        compiled.classify(((b"X-N%d" % number, b""),))
    assert compiled.classify(((b"x_auth_subject", b"me"), (b"X-N1", b"1"))).kept == [(b"X-N1", b"1")]


def test_a_foreign_credential_and_a_trusted_proxys_fields_come_back_in_place() -> None:
    headers = (
        (b"A", b"1"),
        (b"Authorization", b"Bearer jwt"),
        (b"X-Forwarded-For", b"1.2.3.4"),
        (b"X_Forwarded_For", b"6.6.6.6"),
        (b"X-Auth-Subject", b"me"),
        (b"B", b"2"),
    )
    compiled = rules()
    assert compiled.reclassify(headers, credential=False, from_proxy=False) == compiled.classify(headers).kept
    assert compiled.reclassify(headers, credential=True, from_proxy=False) == [headers[0], headers[1], headers[5]]
    assert compiled.reclassify(headers, credential=False, from_proxy=True) == [headers[0], headers[2], headers[5]]


def test_what_the_connection_field_names_is_left_out_but_for_framing() -> None:
    fields = [(b"X-Hop", b"1"), (b"x-HOP", b"2"), (b"X-Stay", b"3"), (b"Content-Length", b"4"), (b"Host", b"h")]
    named = drop_connection_options(fields, [b"close,  X-hop", b"content-length, host, transfer-encoding,,"])
    assert named == [(b"X-Stay", b"3"), (b"Content-Length", b"4"), (b"Host", b"h")]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_a_name_or_address_with_perhaps_a_port(host: bytes) -> None:
    assert check_host([host], (1, 1)) == host


@pytest.mark.parametrize("values", [None, [], [b"a", b"a"], *[[host] for host in BAD_HOSTS]])
def test_a_host_of_any_other_form_is_refused(values: list[bytes] | None) -> None:
    with pytest.raises(Denied):
        check_host(values, (1, 1))


def test_only_http_1_0_may_leave_the_host_out() -> None:
    assert check_host(None, (1, 0)) == b""
    with pytest.raises(Denied):
        check_host([b""], (1, 0))


@given(st.text())
def test_a_value_that_we_write_is_printable_ascii_whatever_is_in_it(text: str) -> None:
    assert all(0x20 <= byte <= 0x7E for byte in field_value(text))


def test_a_value_that_we_write_can_be_read_back() -> None:
    assert field_value("Ada: streams:read") == b"Ada: streams:read"
    assert field_value("100%\r\nX: y é") == b"100%25%0D%0AX: y %C3%A9"
