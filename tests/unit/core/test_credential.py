"""What a request presents as its credential, and what is not ours to judge."""

from base64 import b64encode
from typing import Literal

import pytest

from sidecar.core.credentials import (
    Copies,
    Credential,
    CredentialRules,
    cookies,
    header_value,
    parameters,
    without_cookie,
    without_item,
    without_parameter,
)
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import Source

BEARER = Source(kind="header", name="Authorization", scheme="Bearer")
BASIC = Source(kind="header", name="Authorization", scheme="Basic", part="username")
API_KEY = Source(kind="header", name="X-Api-Key")
QUERY = Source(kind="query", name="api_key")
COOKIE = Source(kind="cookie", name="api_key")
SESSION = Source(kind="cookie", name="session")
KEY = "hv_live_abc"


def rules(*sources: Source, passing: tuple[Source, ...] = ()) -> CredentialRules:
    return CredentialRules(sources or (BEARER, API_KEY), passing, ("hv_live_", "hv_test_"))


def fields(**values: bytes | list[bytes]) -> dict[bytes, list[bytes]]:
    given = {name.replace("_", "-").encode(): value for name, value in values.items()}
    return {name: [value] if isinstance(value, bytes) else value for name, value in given.items()}


def refusal(found: CredentialRules, given: dict[bytes, list[bytes]], query: str | None = None) -> Reason:
    with pytest.raises(Denied) as denied:
        found.find(given, query)
    return denied.value.reason


def basic(text: str) -> bytes:
    return b"Basic " + b64encode(text.encode())


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (b"KEY", b""),
        (b"KEY,", b""),
        (b"KEY, a", b"a"),
        (b"a ,\tKEY", b"a"),
        (b"a, KEY, b", b"a, b"),
        (b"a,  b", b"a,  b"),
        (b"xKEY, KEYx, key", b"xKEY, KEYx, key"),
    ],
)
def test_an_item_is_removed_from_a_list_and_the_others_are_unchanged(line: bytes, left: bytes) -> None:
    assert without_item(line, b"KEY") == left


@pytest.mark.parametrize("part", ["username", "password"])
def test_a_key_is_one_half_of_basic_credentials_as_clients_send_them(part: Literal["username", "password"]) -> None:
    source = Source(kind="header", name="Authorization", scheme="Basic", part=part)
    sent = {b"authorization": [header_value(source, KEY).encode()]}
    assert sent[b"authorization"] == [basic(f"{KEY}:" if part == "username" else f":{KEY}")]
    assert rules(BEARER, source).find(sent, None) == Credential(text=KEY, sources=frozenset((source,)))
    for ignored in ("x", KEY):
        both = basic(f"{KEY}:{ignored}" if part == "username" else f"{ignored}:{KEY}")
        assert rules(source).find(fields(authorization=both), None) is not None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (basic(KEY), Reason.MALFORMED_CREDENTIAL),
        (basic(f"{KEY}:{KEY}2"), Reason.MALFORMED_CREDENTIAL),
        (b"Basic " + KEY.encode(), Reason.MALFORMED_CREDENTIAL),
        (basic(f"{KEY}:").rstrip(b"=") + b"*", Reason.MALFORMED_CREDENTIAL),
        (basic(f":{KEY}"), Reason.MALFORMED_CREDENTIAL),
        (basic("ann:secret"), Reason.INVALID_KEY),
        (basic(":"), Reason.MALFORMED_CREDENTIAL),
    ],
)
def test_basic_credentials_without_one_key_are_refused(value: bytes, reason: Reason) -> None:
    assert refusal(rules(BASIC), fields(authorization=value)) is reason


def test_foreign_basic_credentials_pass_along_with_keys_if_allowed() -> None:
    passing = Source(kind="header", name="Authorization", scheme="Basic")
    found = rules(BASIC, passing=(passing,)).find(fields(authorization=basic("ann:secret")), None)
    assert found is not None
    assert found.foreign


def test_a_request_without_any_has_none() -> None:
    assert rules().find({}, None) is None
    assert rules().find({}, "a=b") is None
    assert rules(COOKIE).find(fields(cookie=b"session=x"), None) is None


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_a_bearer_key_is_found_whatever_the_case_of_the_scheme(scheme: bytes) -> None:
    found = rules().find(fields(authorization=scheme + b" hv_live_abc"), None)
    assert found == Credential(text=KEY, sources=frozenset({BEARER}))


@pytest.mark.parametrize("spaces", [2, 3, 80])
def test_any_number_of_spaces_separates_the_scheme_from_the_key_unless_it_must_be_one(spaces: int) -> None:
    value = b"Bearer" + b" " * spaces + b"hv_live_abc"
    found = rules().find(fields(authorization=value), None)
    assert found == Credential(text=KEY, sources=frozenset({BEARER}))
    strict = CredentialRules((BEARER,), (BEARER,), ("hv_live_",), one_space=True)
    assert refusal(strict, fields(authorization=value)) is Reason.INVALID_KEY
    assert strict.find(fields(authorization=b"Bearer hv_live_abc"), None) == found
    token = b"Bearer" + b" " * spaces + b"a.jwt"
    assert refusal(strict, fields(authorization=token)) is Reason.INVALID_KEY
    other = rules(passing=(BEARER,)).find(fields(authorization=token), None)
    assert other is not None
    assert other.foreign


def test_a_key_in_a_header_without_scheme_is_the_whole_value() -> None:
    assert rules().find(fields(x_api_key=b"hv_test_x y"), None) == Credential(
        text="hv_test_x y", sources=frozenset({API_KEY})
    )


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"Bearer",
        b"Bearer ",
        b"Bearer  ",
        b"Bearer\thv_live_abc",
        b"Bearer hv_live_a\x00",
        b"Bearer hv_live_\xe9",
        b"Basic aHY6",
        b"hv_live_abc",
        b"Bearer\xa0hv_live_abc",
    ],
)
def test_an_authorization_header_of_another_form_is_malformed(value: bytes) -> None:
    assert refusal(rules(), fields(authorization=value)) is Reason.MALFORMED_CREDENTIAL


@pytest.mark.parametrize("value", [b'Bearer "hv_live_abc"', b"Bearer Bearer hv_live_abc", b"Bearer other"])
def test_a_key_without_our_prefix_is_not_valid(value: bytes) -> None:
    assert refusal(rules(), fields(authorization=value)) is Reason.INVALID_KEY


def test_two_lines_of_one_header_are_malformed_even_when_they_agree() -> None:
    for values in ([b"hv_live_a", b"hv_live_a"], [b"hv_live_a", b"hv_live_b"], [b"", b"hv_live_a"]):
        assert refusal(rules(), fields(x_api_key=values)) is Reason.MALFORMED_CREDENTIAL


def test_sources_that_agree_are_one_credential_of_them_all() -> None:
    found = rules().find(fields(authorization=b"Bearer hv_live_abc", x_api_key=b"hv_live_abc"), None)
    assert found == Credential(text=KEY, sources=frozenset({BEARER, API_KEY}))


@pytest.mark.parametrize(
    "given",
    [
        fields(authorization=b"Bearer hv_live_abc", x_api_key=b"hv_live_abd"),
        fields(authorization=b"Bearer a.jwt", x_api_key=b"hv_live_abc"),
    ],
)
def test_sources_that_disagree_are_refused(given: dict[bytes, list[bytes]]) -> None:
    assert refusal(rules(passing=(BEARER,)), given) is Reason.MALFORMED_CREDENTIAL


def test_a_foreign_token_passes_only_where_configured_and_only_if_it_is_one() -> None:
    passing = rules(passing=(BEARER,))
    found = passing.find(fields(authorization=b"Bearer a.b-c_d~e+f/g=="), None)
    assert found is not None
    assert found.foreign
    for value in (b"Bearer a b", b"Bearer a,b", b'Bearer "a"', b"Bearer Bearer hv_live_abc"):
        assert refusal(passing, fields(authorization=value)) is Reason.INVALID_KEY
    assert refusal(rules(), fields(authorization=b"Bearer a.b-c")) is Reason.INVALID_KEY


def test_a_key_of_ours_is_never_foreign() -> None:
    found = rules(passing=(BEARER, SESSION)).find(fields(authorization=b"Bearer hv_live_abc", cookie=b"session=1"), "")
    assert found == Credential(text=KEY, sources=frozenset({BEARER}))


@pytest.mark.parametrize("value", [b"hv_live_abc", b"Token hv_live_abc"])
def test_a_key_of_ours_in_another_form_does_not_pass_as_something_foreign(value: bytes) -> None:
    for passing in (
        Source(kind="header", name="Authorization"),
        Source(kind="header", name="Authorization", scheme="Token"),
    ):
        found = rules(passing=(passing,))
        assert refusal(found, fields(authorization=value)) is Reason.MALFORMED_CREDENTIAL
        other = found.find(fields(authorization=b"Token other"), None)
        assert other is not None
        assert other.foreign


SECRET_HEADER = Source(kind="header", name="X-Session")
DIGEST = Source(kind="header", name="Authorization", scheme="Digest")


@pytest.mark.parametrize(
    ("passing", "sent", "passes"),
    [
        (SESSION, [(b"Cookie", b"a=b; session=1")], True),
        (SESSION, [(b"cookie", b"a=b"), (b"Cookie", b"session=1")], True),
        (SESSION, [(b"Cookie", b"sessions=1")], False),
        (SESSION, [(b"Cookie", b"session")], False),
        (SESSION, [(b"Cookie", b"session=")], False),
        (SESSION, [(b"Cookie", b'session=""')], False),
        (SESSION, [(b"Cookie", b"session=1; session=2")], False),
        (SESSION, [(b"Cookie", b"session=1"), (b"Cookie", b"session=1")], False),
        (SESSION, [(b"Cookie", b"session=hv_live_abc")], False),
        (SECRET_HEADER, [(b"x-SESSION", b"1")], True),
        (SECRET_HEADER, [(b"X-Session", b"")], False),
        (SECRET_HEADER, [(b"X-Session", b" ")], False),
        (SECRET_HEADER, [(b"X-Session", b"1"), (b"x-session", b"1")], False),
        (SECRET_HEADER, [(b"X_Session", b"1")], False),
        (SECRET_HEADER, [(b"X-Session", b"hv_live_abc")], False),
        (SECRET_HEADER, [(b"X-Session", b"Token  hv_live_abc")], False),
        (DIGEST, [(b"Authorization", b'digest username="a", nonce="b"')], True),
        (DIGEST, [(b"Authorization", b"Digest   a")], True),
        (DIGEST, [(b"Authorization", b"Digest")], False),
        (DIGEST, [(b"Authorization", b"Digest  ")], False),
        (DIGEST, [(b"Authorization", b"Digest hv_live_abc")], False),
        (DIGEST, [(b"Authorization", b"Basic eDp5")], False),
    ],
)
def test_one_credential_that_is_not_ours_passes_where_its_place_is_named(
    passing: Source, sent: list[tuple[bytes, bytes]], passes: bool
) -> None:
    assert (rules(API_KEY, passing=(passing,)).foreign(tuple(sent)) is not None) is passes
    assert rules(API_KEY).foreign(tuple(sent)) is None


def test_a_cookie_may_hold_a_key_or_else_a_session() -> None:
    either = rules(SESSION, passing=(SESSION,))
    ours = either.find(fields(cookie=b"session=hv_live_abc"), None)
    assert ours == Credential(text=KEY, sources=frozenset({SESSION}))
    other = either.find(fields(cookie=b"session=browser"), None)
    assert other is not None
    assert other.foreign
    for line in (b"session=", b"session=1; session=2"):
        assert refusal(either, fields(cookie=line)) is Reason.MALFORMED_CREDENTIAL
    assert refusal(rules(SESSION), fields(cookie=b"session=browser")) is Reason.INVALID_KEY


def test_keys_without_a_scheme_leave_room_for_one_that_is_not_ours() -> None:
    bare = rules(Source(kind="header", name="Authorization"), passing=(BEARER,))
    assert bare.find(fields(authorization=b"hv_live_abc"), None) is not None
    found = bare.find(fields(authorization=b"Bearer a.b-c"), None)
    assert found is not None
    assert found.foreign
    assert refusal(bare, fields(authorization=b"Bearer hv_live_abc")) is Reason.INVALID_KEY
    assert refusal(bare, fields(authorization=b"other")) is Reason.INVALID_KEY


@pytest.mark.parametrize(
    "query", ["api_key=hv_live_abc", "x=1&y=hv_test_1", "k=hv%5Flive_abc", "k=%68v_live_abc", "hv=&=hv_live_a"]
)
def test_a_key_in_the_query_is_refused_unless_enabled(query: str) -> None:
    assert refusal(rules(), {}, query) is Reason.MALFORMED_CREDENTIAL


def test_a_query_that_only_mentions_keys_is_not_a_key() -> None:
    assert rules().find({}, "q=about hv_live_ keys&x=%zz") is None


def test_an_enabled_query_parameter_and_cookie_are_sources() -> None:
    both = rules(QUERY, COOKIE)
    assert both.find({}, "a=1&api_key=hv_live_abc") == Credential(text=KEY, sources=frozenset({QUERY}))
    assert both.find(fields(cookie=b"a=1; api_key=hv_live_abc"), None) == Credential(
        text=KEY, sources=frozenset({COOKIE})
    )
    assert refusal(both, {}, "api_key=hv_live_a&api_key=hv_live_a") is Reason.MALFORMED_CREDENTIAL
    assert refusal(both, {}, "api_key=") is Reason.MALFORMED_CREDENTIAL
    assert refusal(both, {}, "api_key=other") is Reason.INVALID_KEY
    assert refusal(both, fields(cookie=[b"api_key=hv_live_a", b"api_key=hv_live_b"])) is Reason.MALFORMED_CREDENTIAL
    assert refusal(both, fields(cookie=b"api_key=hv_live_a"), "api_key=hv_live_b") is Reason.MALFORMED_CREDENTIAL


SHORT_COPIES = {
    b"X-A: s3cret": False,
    b'X-A: "s3cret"': False,
    b"X-A: a s3cret": True,
    b"Authorization: Bearer s3cret": False,
    b"Authorization: Bearer s3%63ret": False,
    b"Authorization: Bearer as3cret": True,
    b"Authorization: Basic czNjcmV0Og==": False,
    b"s3cret: 1": True,
}


@pytest.mark.parametrize(("line", "stays"), SHORT_COPIES.items())
def test_copies_of_a_short_key_are_whole_values_and_all_that_follows_a_scheme(line: bytes, stays: bool) -> None:
    name, _, value = line.partition(b": ")
    assert bool(Copies("s3cret").removed_from([(name, value)])) is stays


def test_a_credential_does_not_show_its_secret() -> None:
    assert KEY not in repr(Credential(text=KEY))


@pytest.mark.parametrize("name", ["api_key", "api%5fkey", "%61pi_key"])
def test_a_parameter_leaves_the_query_and_every_other_byte_stays(name: str) -> None:
    assert without_parameter(f"x=%2F+%2b&{name}=K&&y=~&api_keys=1", "api_key") == "x=%2F+%2b&&y=~&api_keys=1"


def test_what_is_found_as_a_parameter_is_removed_as_one() -> None:
    for query in ("api_key=K", "a&api_key=K", "api+key=K", "api_key", "api_key=K;b=1"):
        names = {name for name, _ in parameters(query)}
        left = {name for name, _ in parameters(without_parameter(query, "api_key"))}
        assert left - {""} == names - {"api_key", ""}


@pytest.mark.parametrize(
    "line", [b"api_key=K", b"a=1; api_key=K; b=2", b"\tapi_key=K", b"\xa0api_key=K", b"\x1capi_key=K;x", b"api_key =K"]
)
def test_what_is_found_as_a_cookie_is_removed_as_one(line: bytes) -> None:
    found = [name for name, _ in cookies({b"cookie": [line]})]
    left = [name for name, _ in cookies({b"cookie": [without_cookie(line, "api_key")]})]
    assert [name for name in left if name] == [name for name in found if name != "api_key"]
