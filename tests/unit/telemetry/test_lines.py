"""Formats of the access log, and what they leave out."""

import json
import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.model import ApiKey, RequestHead
from sidecar.telemetry.access_log import AccessLog, CombinedLines, JsonLines, LineFormat, with_client
from sidecar.telemetry.redaction import Redaction
from tests.unit.telemetry.test_accesslog import access, written

KEY = "hv_live_" + "aB3" * 14 + "z"
REDACTION = Redaction(("hv_live_", "hv_test_", ""))
# What is published as the Combined Log Format, as programs read it.
COMBINED = re.compile(
    r'(?P<host>\S+) \S+ (?P<user>\S+) \[(?P<time>[^\]]+)\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) '
    r'(?P<bytes>\d+|-) "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"'
)
HOSTILE = [
    'a"b\\c', "a\r\nb", "\x00\x1b[31m\x7f", "\u2028\u2029\x85\x0b\x0c\x1c", "\udcff\ud800", "\ud83d\ude00", "é😀",
    "a b ] \" - \"",
]  # fmt: skip


def combined(**values: object) -> dict[str, str]:
    line = CombinedLines(REDACTION, with_query=True)(access(**values)).decode("ascii")
    assert len(line.splitlines()) == 1
    found = COMBINED.fullmatch(line)
    assert found, line
    return found.groupdict()


def test_a_combined_line_has_apaches_format() -> None:
    key = ApiKey(
        id="key_1", name="ci", prefix="hv_live_abcd", digest=b"secret", algorithm="sha256", created_at=0,
        created_by="test",
    )  # fmt: skip
    line = access(key=key, bytes_out=2326, referer="http://example.com/start.html", agent="Mozilla/4.08 [en]")
    assert CombinedLines(REDACTION)(line) == (
        b'192.0.2.1 - key_1 [01/Mar/2026:12:00:00 +0000] "GET /v1/streams HTTP/1.1" 200 2326 '
        b'"http://example.com/start.html" "Mozilla/4.08 [en]"'
    )


def test_a_combined_line_has_dashes_for_unknown_values() -> None:
    assert CombinedLines(REDACTION)(access()).endswith(
        b'192.0.2.1 - - [01/Mar/2026:12:00:00 +0000] "GET /v1/streams HTTP/1.1" 200 - "-" "-"'
    )


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("field", ["method", "target", "client_address", "referer", "agent"])
def test_a_combined_line_stays_one_line_of_nine_fields_whatever_it_holds(hostile: str, field: str) -> None:
    told = combined(**{field: hostile})
    assert (told["status"], told["bytes"]) == ("200", "-")


def test_bytes_that_are_not_ascii_are_escaped_as_apache_does() -> None:
    assert combined(agent='\xe9\udcff\n"\\')["agent"] == r"\xc3\xa9\xff\x0a\"\\"


def test_a_user_agent_is_truncated() -> None:
    headers = ((b"Referer", b"r" * 30_000), (b"User-Agent", b"u" * 30_000))
    line = with_client(access(), RequestHead(method="GET", target="/", headers=headers, peer=""))
    assert len(line.referer) + len(line.agent) <= 2048
    assert len(CombinedLines(REDACTION)(line)) < 1400


def test_a_logged_referer_has_no_user_query_or_fragment() -> None:
    shown = [
        combined(referer=referer)["referer"]
        for referer in ("https://u:canary@h/p?canary#canary", "/p?canary", "https://h/@x", "canary@h", "https://u@v@h")
    ]
    assert shown == ["https://h/p", "/p", "https://h/@x", "canary@h", "https://h"]


FORMATS = [JsonLines(REDACTION), JsonLines(REDACTION, with_query=True), CombinedLines(REDACTION, with_query=True)]


@pytest.mark.parametrize("line", FORMATS, ids=["json", "json with query", "combined"])
@pytest.mark.parametrize(
    "values",
    [
        {"target": f"/items/{KEY}/x"},
        {"target": f"/items?{KEY}"},
        {"target": f"/items?{KEY}=1&api_key={KEY}&x"},
        {"target": f"/items#{KEY}"},
        {"target": "/" + "a" * 2020 + KEY},
        {"referer": f"http://h/{KEY}?api_key={KEY}"},
        {"agent": f"curl/8 {KEY}"},
        {"agent": "a" * 500 + KEY},
        {"request_id": KEY},
        {"method": KEY},
    ],
)
def test_a_key_is_never_written_wherever_it_occurs(line: LineFormat, values: dict[str, object]) -> None:
    assert KEY[8:24].encode() not in line(access(**values))
    assert b"hv_live_aB3" not in line(access(**values))


ENCODED = {
    "a letter": KEY.replace("a", "%61"),
    "one letter": KEY.replace("a", "%61", 1),
    "a letter of the prefix": KEY.replace("h", "%68", 1),
    "the underscore": KEY.replace("_", "%5F"),
    "the underscore in lower case": KEY.replace("_", "%5f"),
    "all of it": "".join(f"%{ord(char):02x}" for char in KEY),
    "all of it in upper case": "".join(f"%{ord(char):02X}" for char in KEY),
    "all of it twice": "".join(f"%25{ord(char):02x}" for char in KEY),
    "all of it five times": "".join(f"%25252525{ord(char):02X}" for char in KEY),
    "escapes of escapes": "".join(f"%25%{ord(f'{ord(char):02x}'[0]):x}{f'{ord(char):02x}'[1]}" for char in KEY),
    "escapes of escapes of escapes": KEY.replace("a", "%25%32%35%25%33%36%25%33%31"),
    "a letter of an escape": KEY.replace("l", "%6%63"),
    "digits of escapes": KEY.replace("_", "%%35%46").replace("B", "%4%32"),
}


@pytest.mark.parametrize("line", FORMATS, ids=["json", "json with query", "combined"])
@pytest.mark.parametrize("key", ENCODED.values(), ids=ENCODED)
def test_a_key_is_not_written_however_it_is_percent_encoded(line: LineFormat, key: str) -> None:
    for target in (
        f"/items/{key}/x",
        f"/{'a' * 2000}/{key}",
        f"/items?{key}",
        f"/items?api_key={key}&x",
        f"/%3Fk={key}",
    ):
        for values in ({"target": target}, {"referer": f"http://h{target}"}, {"agent": f"curl{target}"}):
            written = line(access(**values)).decode()
            assert holds_no_key(written), written


def holds_no_key(written: str) -> bool:
    """Whether nothing of the key comes out, as often as it is decoded."""
    for _ in range(8):
        if "aB3aB3aB3aB3aB3a" in written:
            return False
        written = unquote(written)
    return True


def encoded(text: str, choices: st.DataObject, depth: int) -> str:
    """`text` with any of its characters percent-encoded, and any of those of their escapes."""
    if depth == 0:
        return text
    which = choices.draw(st.integers(0, 2 ** len(text) - 1))
    spellings = [f"%{ord(char):02{choices.draw(st.sampled_from('xX'))}}" for char in text]
    return "".join(
        encoded(spelt, choices, depth - 1) if which >> at & 1 else text[at] for at, spelt in enumerate(spellings)
    )


@given(st.data(), st.integers(1, 3))
def test_a_key_is_hidden_whatever_of_it_is_encoded_and_how_often(choices: st.DataObject, depth: int) -> None:
    shown = REDACTION.path(f"/items/{encoded(KEY[:26], choices, depth)}/x", longest=2048)
    assert holds_no_key(shown), shown
    assert "[redacted]" in shown


@pytest.mark.parametrize(
    "path",
    [
        "/caf%C3%A9/a%20b%2Fc",
        "/%61dmin",
        "/hv_live_%61b",
        "/100%",
        "/%zz%25%32%65%25%32%65/admin",
        "/%68v_live_" + "a-" * 20,
    ],
)
def test_a_path_that_holds_no_key_is_written_as_it_came(path: str) -> None:
    assert REDACTION.path(path, longest=2048) == path


RANDOM = "4fK9sQ2mZx7LwB1tYd6RpC3vN8hJ0aGe5UiXoWqSkTy"
MANGLED = {
    "a character of the prefix": "8v_live_" + RANDOM,
    "two characters in turn": "hv_lvie_" + RANDOM,
    "no underscore": "hvlive" + RANDOM,
    "no prefix": RANDOM,
    "a part": RANDOM[:30],
    "a letter of it encoded": "8v_live_" + RANDOM.replace("K", "%4B"),
    "all of it encoded twice": "8v_live_" + "".join(f"%25{ord(char):02x}" for char in RANDOM),
    "escapes of escapes": "8v_live_" + RANDOM.replace("K", "%%34%42"),
}


@pytest.mark.parametrize("line", FORMATS, ids=["json", "json with query", "combined"])
@pytest.mark.parametrize("key", MANGLED.values(), ids=MANGLED)
def test_a_key_whose_prefix_is_mangled_is_not_written(line: LineFormat, key: str) -> None:
    for values in ({"target": f"/items/{key}/x"}, {"target": f"/{'b' * 2000}/{key}"}, {"target": f"/a?{key}&b={key}"}):
        written = line(access(**values)).decode()
        for _ in range(4):
            assert RANDOM[5:20] not in written
            written = unquote(written)
    assert "[redacted]" in REDACTION.path(f"/items/{key}/x", longest=2048)
    assert "[redacted]" in REDACTION.address(f"http://h/{key}", longest=512)


@pytest.mark.parametrize(
    "part",
    [
        "550e8400-e29b-41d4-a716-446655440000",
        "550E8400-E29B-41D4-A716-446655440000",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "cus_NffrFeUfNV2Hib/sub_1MowQVLkdIwHu7ixeRlqHVzs",
        "key_5f0Zr2mWq8LcXaTn3vYe",
        "123456789012345678901234567890",
        "getTheCompleteListOfAllAvailableInvoices",
        RANDOM[:29],
    ],
)
def test_usual_parts_of_paths_are_written(part: str) -> None:
    assert REDACTION.path(f"/items/{part}/x", longest=2048) == f"/items/{part}/x"


def test_text_next_to_an_encoded_key_is_still_shown() -> None:
    assert REDACTION.path(f"/a%2Fb/{ENCODED['all of it']}/%C3%A9", longest=2048) == "/a%2Fb/[redacted]/%C3%A9"
    assert REDACTION.path(f"/a/{ENCODED['escapes of escapes']}/b", longest=2048) == "[redacted]"


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/a?page=2&sort=-x", "page=*&sort=*"),
        ("/a?filter[name]=x&y", "filter[name]=*&*"),
        ("/a?", "*"),
        ("/a?a%3db=1&" + "n" * 21 + "=1", "*&*"),
        ("/a?x=?y=2", "x=*"),
        ("/a", None),
    ],
)
def test_only_the_names_of_a_query_are_shown(target: str, shown: str | None) -> None:
    told = json.loads(JsonLines(REDACTION, with_query=True)(access(target=target)))
    assert told.get("query") == shown
    assert told["path"] == "/a"
    assert "query" not in json.loads(JsonLines(REDACTION)(access(target=target)))


def test_a_long_query_is_cut() -> None:
    assert len(JsonLines(REDACTION, with_query=True)(access(target="/a?" + "b=1&" * 20_000))) < 3000


def test_new_prefixes_apply_once_configured() -> None:
    redaction = Redaction(("hv_live_",))
    line = JsonLines(redaction)
    new = access(target="/sk_" + "x" * 40)
    assert b"x" * 40 in line(new)
    redaction.reconfigure(("sk_",))
    assert json.loads(line(new))["path"] == "/sk_[redacted]"


async def test_successes_are_sampled_and_every_refusal_and_failure_is_written() -> None:
    chosen = iter([True, False, False])
    log = AccessLog(lambda _: None, sample=lambda: next(chosen))
    assert [log.wants(access(status=status)) for status in (200, 304, 101)] == [True, False, False]
    ended = [
        access(status=401, reason="invalid_key"),
        access(status=404),
        access(status=502),
        access(reason="internal"),
    ]
    assert all(log.wants(line) for line in ended)


OF_A_KEY = {
    "environment": "live",
    "plan": "pro",
    "scopes": ["streams:*", "videos:read"],
    "credential": "key",
}


@pytest.mark.parametrize("target", ["/v1/streams", "/v1/streams/\udcff"])
def test_a_line_holds_what_a_replay_needs(target: str) -> None:
    key = ApiKey(
        id="key_1", name="ci", prefix="hv_live_abcd", digest=b"secret", algorithm="sha256", environment="live",
        plan="pro", scopes=("streams:*", "videos:read"), created_at=0, created_by="test",
    )  # fmt: skip
    line = JsonLines(REDACTION)
    told = json.loads(line(access(target=target, key=key, credential="key", config="3f2a91c0bd12")))
    assert told.items() >= {**OF_A_KEY, "config": "3f2a91c0bd12"}.items()
    bare = json.loads(line(access(target=target)))
    assert bare.keys().isdisjoint({*OF_A_KEY, "config", "sampled"})


def test_a_sampled_line_contains_its_sample_rate() -> None:
    line = JsonLines(REDACTION, share=0.1)
    assert json.loads(line(access()))["sampled"] == 0.1
    assert "sampled" not in json.loads(line(access(status=401, reason="invalid_key")))
    assert "sampled" not in json.loads(line(access(status=502)))


async def test_json_is_the_format_unless_another_is_chosen() -> None:
    assert json.loads(await written(access()))["path"] == "/v1/streams"
