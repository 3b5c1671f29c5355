"""A forward-auth request gets the same decision as the request itself on the data listener."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.recording import Upstream
from tests.harness.targets import (
    CLIMBS,
    DISGUISES,
    KEPT_SLASH_CLIMBS,
    MALFORMED,
    OTHER_CLIMBS,
    OVERLONG,
    PERCENT_NAMES,
    TWICE_DECODED,
)
from tests.heavy.fuzz.budget import budget
from tests.wire.forward_auth.asking import DIALECTS, Decider, status_of

PREFIXES = ("/public/", "/items/", "/nowhere/")
ORDINARY = [
    "/public/x", "/public", "/public/", "/publicX", "/public.", "/public%20", "/PUBLIC/x", "/", "/items/1?x=/public/",
    "/public/x?../admin", "/public/x?/../../admin", "/public/x?%00%ff%zz%", "/public?/;\\//..",
    "/public/x#y", "/public?x#y",
    "/%61dmin/x", "/ADMIN/x", "/items/a%20b+c;d=1?x=%2F+%2b&y=a%26b&&z=%7E~", "/items/x?", "/items/%E2%82%AC",
    "/items/a%2fb", "/items/~!$&'()*+,=:@-._", '/items/[1]{2}|^`"<>?[]{}|^`"<>', "/admin/x", "/admin;x",
]  # fmt: skip
PIECES = [
    "public", "items", "admin", "x", "/", "//", "/", ".", "..", ";", ";a=b", "%2f", "%2F", "%5c", "\\", "%2e", "%2e%2e",
    "%252e", "%252f", "%25", "%3b", "%3f", "%23", "%20", "+", "%c3%a4", "%41dmin", "PUBLIC", "?",
    "?x=/../admin", "&", ":",
]  # fmt: skip
STRICTER = re.compile(r"//|\\|/\.|%2e|%2f|%5c|%25", re.IGNORECASE)
"""Where the face may refuse what the data listener, which forwards the bytes itself, lets through."""


def check_same(decider: Decider, method: str, target: str, key: str) -> None:
    credential = decider.credential(key)
    direct = decider.sidecar.ask(method, target, credential).status
    for dialect in DIALECTS:
        told = status_of(decider.ask(dialect, method, target, credential))
        if STRICTER.search(target.partition("?")[0]) and direct != told:
            assert told == 400, (dialect, direct)
        else:
            assert told == direct, dialect


@pytest.fixture(autouse=True)
def _ready(upstream: Upstream) -> None:
    """Nothing is planned: what is let through is a 200."""


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize("key", ["", "Kr", "Ka", "Kv"])
def test_targets_are_judged_alike(decider: Decider, key: str) -> None:
    for target in [*CLIMBS, *DISGUISES, *OTHER_CLIMBS, *ORDINARY]:
        check_same(decider, "GET", target, key)


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize("key", ["", "Kr", "Ka"])
def test_percent_signs_and_encoded_slashes_are_judged_alike(decider: Decider, key: str) -> None:
    for target in [*TWICE_DECODED, *KEPT_SLASH_CLIMBS, *(f"/items/{name}" for name in PERCENT_NAMES)]:
        check_same(decider, "GET", target, key)


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize("piece", [*MALFORMED, *OVERLONG])
def test_forbidden_bytes_in_a_path_are_judged_alike(decider: Decider, piece: str) -> None:
    for prefix in PREFIXES:
        check_same(decider, "GET", prefix + piece, "Ka")
        check_same(decider, "GET", f"{prefix}{piece}/x", "")


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize(
    "method",
    ["HEAD", "POST", "OPTIONS", "DELETE", "PROPFIND", "M-SEARCH", "TRACE", "get", "BREW"],
)
def test_methods_are_judged_alike(decider: Decider, method: str) -> None:
    for target in ("/public/x", "/items/x"):
        for key in ("", "Kr", "Kw"):
            check_same(decider, method, target, key)


@pytest.mark.requirement("S5.4")
@budget(150)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=8),
    start=st.sampled_from(["/public/", "/items/", "/admin/", "/"]),
    key=st.sampled_from(["", "Kr", "Ka"]),
)
def test_odd_paths_are_judged_alike(decider: Decider, pieces: list[str], start: str, key: str) -> None:
    check_same(decider, "GET", start + "".join(pieces), key)
