"""Request-targets: accepted forms, and the readings of a path."""

import re
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import Denied, Reason
from sidecar.core.target import (
    KEPT_SLASH,
    MAX_CHARACTERS,
    MAX_READINGS,
    Target,
    parse_target,
    readings,
    with_prefix,
)
from tests.harness.targets import KEPT_SLASH_CLIMBS, PERCENT_NAMES, TWICE_DECODED

HOST = "api.test"
PIECES = [
    "a",
    "admin",
    "public",
    "/",
    "//",
    ".",
    "..",
    ";",
    "\\",
    "%2e",
    "%2F",
    "%5c",
    "%3b",
    "%25",
    "%252e",
    "%2500",
    "%25ff",
    "%252f",
    "%20",
    "%",
]
TANGLED = st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: "/" + "".join(pieces))
PLAIN = st.lists(st.from_regex(r"[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9_~.-]{0,8}", fullmatch=True), max_size=6).map(
    lambda segments: "/" + "/".join(segments)
)


def reason_of(raw: str, host: str = HOST) -> Reason:
    with pytest.raises(Denied) as denied:
        readings(parse_target(raw, host).path)
    return denied.value.reason


def test_an_origin_form_round_trips_unchanged() -> None:
    for raw in ("/", "/a", "/a?", "/a?b=c", "/a?b?c", "/a%20b+c;d=1?x=%2F+%2b&y=a%26b&&z=%7E~"):
        assert str(parse_target(raw, HOST)) == raw


def test_an_absent_query_is_not_an_empty_one() -> None:
    assert parse_target("/a", HOST) == Target(path="/a", query=None, ordinary=True)
    assert parse_target("/a?", HOST) == Target(path="/a", query="", ordinary=True)


def test_the_absolute_form_for_the_very_host_is_its_origin_form() -> None:
    assert str(parse_target("http://api.test/a?b", HOST)) == "/a?b"
    assert str(parse_target("HTTP://API.test", HOST)) == "/"
    assert str(parse_target("https://api.test:8443/a", "api.test:8443")) == "/a"


@pytest.mark.parametrize(
    "raw",
    [
        "http://evil.test/a",
        "http://api.test@evil.test/a",
        "http://api.test:80/a",
        "http://evil.test\\@api.test/a",
        "http://api.test//admin",
        "http://api.test?x",
        "http://api.test/a#b",
        "http:///a",
        "http:/a",
        "ftp://api.test/a",
        "//api.test/a",
        "/\\api.test/a",
        "\\a",
        "api.test:80",
        "admin",
        "*",
        "",
        "?x",
        "/a#b",
        "/a?b#c",
        "/a b",
        "/a?b c",
        "/a\tb",
        "/a\x00",
        "/a\x7f",
        "/é",
        "/a?é",
        "/a\udc80",
        "/a\n",
    ],
)
def test_every_other_target_is_refused(raw: str) -> None:
    assert reason_of(raw) is Reason.BAD_TARGET


def test_an_absolute_form_without_a_host_is_refused_even_where_no_host_header_is() -> None:
    assert reason_of("http:///a", host="") is Reason.BAD_TARGET


@pytest.mark.parametrize(
    "path",
    [
        "/%",
        "/%2",
        "/%zz",
        "/%u002e",
        "/%0a",
        "/%00",
        "/%7f",
        "/%250d%250a",
        "/%ff",
        "/%c0%af",
        "/%c0%ae%c0%ae",
        "/%e0%80%af",
        "/%f0%80%80%af",
        "/%c1%9c",
        "/%ed%a0%80",
        "/%f8%88%80%80%af",
        "/%25c0%25af",
        "/%25c0%25ae%25c0%25ae",
        "/%25c0%252e",
        "/%25e0%2580%25ae",
        "/%25f0%2580%2580%25af",
        "/%25f8%2580%2580%2580%25af",
        "/%25fc%2580%2580%2580%2580%25af",
        "/50%250d",
        "/50%250acres",
        "/%25ff%ff",
        "/..",
        "/a/../..",
        "/%2e%2e",
        "/%252e%252e/a",
        "/a/..%2f..",
        "/..;/a",
        "/a\\..\\..",
    ],
)
def test_a_path_that_nobody_sends_in_good_faith_is_refused(path: str) -> None:
    assert reason_of(path) is Reason.BAD_TARGET


@given(PLAIN)
def test_a_path_of_ordinary_characters_has_one_reading(path: str) -> None:
    assert readings(path) == (path,)


@given(TANGLED)
def test_the_raw_path_is_always_the_first_reading(path: str) -> None:
    with suppress(Denied):
        assert readings(path)[0] == path


@given(TANGLED)
def test_readings_include_every_parsers_result(path: str) -> None:
    try:
        found = readings(path)
    except Denied:
        return
    once = unquote_to_bytes(path).decode()
    twice = unquote_to_bytes(once).decode("utf-8", "surrogateescape")
    ignoring = unquote_to_bytes(once).decode("utf-8", "ignore").replace("\0", "")
    assert {once, twice, twice.partition("\0")[0], re.sub("\0[^/]*", "", twice), ignoring} <= set(found)
    for reading in found:
        assert reading.replace("\\", "/") in found
        assert re.sub("/+", "/", reading) in found
        assert re.sub(";[^/]*", "", reading) in found
        assert dots_resolved(reading) in found


def dots_resolved(path: str) -> str:
    """RFC 3986 section 5.2.4 as its pseudo-code says."""
    output: list[str] = []
    while path:
        if path.startswith("/./") or path == "/.":
            path = "/" + path[3:]
        elif path.startswith("/../") or path == "/..":
            path = "/" + path[4:]
            output = output[:-1]
        else:
            segment = re.match("/?[^/]*", path)
            assert segment
            output.append(segment[0])
            path = path[segment.end() :]
    return "".join(output)


@given(st.text(max_size=60) | TANGLED, st.text(max_size=10) | st.just(HOST))
def test_nothing_but_denied_is_ever_raised(raw: str, host: str) -> None:
    with suppress(Denied):
        readings(parse_target(raw, host).path)


@pytest.mark.parametrize("name", PERCENT_NAMES)
def test_a_percent_sign_in_a_name_is_accepted_whatever_it_decodes_to_again(name: str) -> None:
    found = readings(f"/files/{name}")
    assert found[0] == f"/files/{name}"
    assert {reading.count("/") for reading in found} == {2}
    assert all(reading.startswith("/files/") for reading in found)


def test_bytes_of_a_second_decoding_that_are_not_utf_8_are_kept_apart() -> None:
    assert set(readings("/f/50%25cab")) == {"/f/50%25cab", "/f/50%cab", "/f/50\udccab", "/f/50b"}
    assert "/f/\udcff" in readings("/f/%25ff")
    assert "/f/\udcff" not in readings("/f/%25fe")


def test_a_reading_ends_at_a_nul_and_so_does_a_segment() -> None:
    assert "/public/secret.txt" in readings("/public/secret.txt%2500.png")
    assert {"/a", "/a/c", "/a\0b/c", "/ab/c"} <= set(readings("/a%2500b/c"))


@pytest.mark.parametrize("path", TWICE_DECODED)
def test_no_byte_of_a_second_decoding_hides_dots(path: str) -> None:
    with suppress(Denied):
        assert any(reading.startswith("/admin") for reading in readings(path))


def test_a_kept_encoded_slash_is_a_character_of_its_segment() -> None:
    for path in ("/p/group%2Fproject/issues", "/p/group%2fproject/issues"):
        assert readings(path, keep_slash=True) == (f"/p/group{KEPT_SLASH}project/issues",)
        assert "/p/group/project/issues" in readings(path)
    assert readings("/queues/%2F/q", keep_slash=True) == (f"/queues/{KEPT_SLASH}/q",)
    assert f"/p/a b{KEPT_SLASH}c" in readings("/p/a%20b%2Fc", keep_slash=True)
    assert readings("/p/a%2F.b%2Fc..d%2F...", keep_slash=True)


def test_other_escapes_are_unaffected_by_kept_slashes() -> None:
    for path in ("/a%252Fb", "/a%25%32%46b", "/a%5Cb", "/a%255Cb", "/a\\b", "/a//b", "/a%20b", "/a;x/%2e%2e/b", "/a"):
        assert readings(path, keep_slash=True) == readings(path)
    assert "/a/b" in readings("/a%252Fb", keep_slash=True)
    assert f"/a{KEPT_SLASH}b/c" in readings("/a%2Fb%252Fc", keep_slash=True)


@pytest.mark.parametrize("path", KEPT_SLASH_CLIMBS)
def test_dots_next_to_an_encoded_slash_are_never_part_of_a_name(path: str) -> None:
    with suppress(Denied):
        assert any(not reading.startswith("/public") for reading in readings(path, keep_slash=True))


READERS: dict[str, Callable[[str], str]] = {
    "decode": lambda text: unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape"),
    "decode but slashes": lambda text: READERS["decode"](re.sub("(?i)%(?=2f)", "%25", text)),
    "turn": lambda text: text.replace("\\", "/"),
    "strip": lambda text: re.sub(";[^/]*", "", text),
    "merge": lambda text: re.sub("/+", "/", text),
    "end": lambda text: text.partition("\0")[0],
    "drop": lambda text: re.sub("[\0-\x1f\udc80-\udcff]", "", text),
    "resolve": lambda text: dots_resolved(text),
}


@settings(max_examples=1000)
@given(TANGLED, st.lists(st.sampled_from(sorted(READERS)), max_size=8))
def test_an_upstream_that_decodes_slashes_later_reaches_the_same_path(path: str, steps: list[str]) -> None:
    """Up to three decodings, in any order with all transformations in between."""
    path = f"/public{path}"
    try:
        found = readings(path, keep_slash=True)
    except Denied:
        return
    if "%2f" in path.lower() and all(reading.startswith("/public/") for reading in found):
        text, decodings = path, 0
        for step in steps:
            decodings += step.startswith("decode")
            if decodings <= 3 or not step.startswith("decode"):
                text = READERS[step](text)
        assert text == "/public" or text.startswith(("/public/", "/public;", "/public\\")), (path, steps)


def test_parsers_that_split_before_decoding_are_considered() -> None:
    assert "/admin" in readings("/public/a%2fb/%2e%2e/%2e%2e/admin")
    assert "/f/a%2fb/admin" in readings("/f/a%2fb/%61dmin")
    assert "/admin" in readings("/public/a%252fb/%252e%252e/%252e%252e/admin")


@pytest.mark.parametrize(
    "path",
    [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/%2e./admin",
        "/public/..%2fadmin",
        "/public/%2E%2E%5Cadmin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/public/%2e%2e;/admin",
        "/public/%2e%2e%3b/admin",
        "/public\\..\\admin",
        "/public/..%5cadmin",
        "/public/..%255cadmin",
        "/public/%252e%252e/admin",
        "/public/%25%32%65%25%32%65/admin",
        "/public/.%2e;x/./admin",
        "/public;x/..;y/admin;z",
        "/public/x/..//..//admin",
        "/%2fadmin",
        "/;/admin",
        "/./admin",
        "/x/../admin",
    ],
)
def test_every_disguise_of_a_path_is_among_its_readings(path: str) -> None:
    assert "/admin" in readings(path)


@pytest.mark.parametrize("path", ["/.well-known/x", "/a..b", "/...", "/a./b", "/a.b.c"])
def test_dots_that_are_part_of_a_name_stay(path: str) -> None:
    assert readings(path) == (path,)


@pytest.mark.parametrize(
    "unit", ["/..%2f", "%252e;\\", "/;/%2f//", "/a;b/../", "/%2e/\\./;x//", "%25%32%66", "/.//", "%25"]
)
def test_a_long_adversarial_path_has_a_bounded_number_of_readings(unit: str) -> None:
    path = "/a" * 4 + unit * (8000 // len(unit))
    try:
        found = readings(path)
        assert len(found) <= MAX_READINGS
        assert sum(map(len, found)) <= MAX_CHARACTERS
    except Denied as denied:
        assert denied.reason in {Reason.AMBIGUOUS_TARGET, Reason.BAD_TARGET}


@pytest.mark.parametrize("unit", ["/a%20b", "/%E2%82%AC", "/a%2fb%20c", "/a;b=c%20d"])
def test_a_long_honest_path_is_read(unit: str) -> None:
    path = unit * (8000 // len(unit))
    assert readings(path)[0] == path


def test_prefixes_are_removed_and_added_and_the_query_stays() -> None:
    target = parse_target("/api/x?y", HOST)
    assert with_prefix(target, ("/api/x",), "", "") == "/api/x?y"
    assert with_prefix(target, ("/api/x",), "/api", "") == "/x?y"
    assert with_prefix(target, ("/api/x",), "/api", "/v2") == "/v2/x?y"
    assert with_prefix(target, ("/api/x",), "", "/v2") == "/v2/api/x?y"
    assert with_prefix(parse_target("/api", HOST), ("/api",), "/api", "") == "/"


@pytest.mark.parametrize("path", ["/apix", "/other", "/api//evil.test/x", "/api/\\evil.test"])
def test_a_prefix_that_cannot_be_removed_safely_is_refused(path: str) -> None:
    with pytest.raises(Denied):
        with_prefix(Target(path=path, query=None), readings(path), "/api", "")


@pytest.mark.parametrize(
    "path", ["/api/a/../../api/x", "/api/a/%2e%2e/%2e%2e/api/x", "/api/..;/api/x", "/api/.%2e/api"]
)
def test_removing_the_prefix_cannot_lead_to_another_path(path: str) -> None:
    with pytest.raises(Denied):
        with_prefix(Target(path=path, query=None), readings(path), "/api", "")


@pytest.mark.parametrize("keep_slash", [False, True])
@pytest.mark.parametrize(
    "rest", ["/", "/a%20b", "/a//b", "/a/../b", "/a/./", "/a;b=c/d", "/a%2Fb", "/a%5cb", "/%E2%82%AC", "/a%2500", "/."]
)
def test_without_its_prefix_a_path_has_no_other_reading(rest: str, keep_slash: bool) -> None:
    target, paths = Target(path=f"/api{rest}", query="?"), readings(f"/api{rest}", keep_slash=keep_slash)
    assert with_prefix(target, paths, "/api", "", keep_slash=keep_slash) == f"{rest}??"


def test_readings_that_do_not_all_lie_below_the_prefix_are_ambiguous() -> None:
    with pytest.raises(Denied) as denied:
        with_prefix(Target(path="/%61pi/x", query=None), readings("/%61pi/x"), "/api", "")
    assert denied.value.reason is Reason.AMBIGUOUS_TARGET
