"""What is stored of a User-Agent: never a key that a client put there."""

import pytest

from sidecar.core.apikey import KeyFormat
from sidecar.usage.writer import HIDDEN, UserAgents

KEY = KeyFormat().make("hv_live_", lambda most: most // 3)


@pytest.mark.parametrize("around", ["{}", "curl/8.5 {}", "app/{}/1.2", "my-client (key={}; x)", "Bearer {}", "{},{}"])
def test_no_form_of_a_key_in_a_user_agent_is_stored(around: str) -> None:
    told = UserAgents(["hv_live_"]).text(around.replace("{}", KEY).encode())
    assert HIDDEN in told and KEY[8:20] not in told
    # One of another configuration, or mistyped, is told by its length.
    told = UserAgents().text(around.replace("{}", f"{KEY}x").encode())
    assert HIDDEN in told and KEY[8:20] not in told


def test_a_truncated_key_reveals_too_little() -> None:
    for before in range(150, 210):
        told = UserAgents(["hv_live_"]).text(b"a" + b" b" * (before // 2) + b" " + KEY.encode())
        assert KEY[8:24] not in told


def test_a_key_made_elsewhere_is_recognised_by_its_prefix() -> None:
    agents = UserAgents(["", "sk-"])
    assert agents.text(b"x/1 sk-550e8400-e29b-41d4-a716-446655440000 y") == f"x/1 {HIDDEN} y"
    agents.reconfigure(["pk+"])
    assert agents.text(b"pk+0123456789=./0123") == HIDDEN


@pytest.mark.parametrize(
    "agent",
    [
        "curl/8.5.0",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/120.0.6099.109",
        "python-requests/2.31.0",
        "Apache-HttpClient/4.5.13 (Java/11.0.20)",
        "hv_live_",
    ],
)
def test_the_names_of_programs_stay(agent: str) -> None:
    assert UserAgents(["hv_live_", "hv_test_"]).text(agent.encode()) == agent


def every_byte(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


SHORT = "hv_live_0123456789abcdef"
WHOLLY = every_byte(SHORT)
ENCODED = {
    "all of it": WHOLLY,
    "in capitals": WHOLLY.upper(),
    "its prefix": every_byte("hv_live_") + SHORT.removeprefix("hv_live_"),
    "an underscore": SHORT.replace("_", "%5F"),
    "twice": every_byte(SHORT[:4]).replace("%", "%25") + SHORT[4:],
    "four times": SHORT.replace("h", "%25252568"),
    "escapes of escapes": SHORT.replace("h", "%%36%38"),
    "without a known prefix": every_byte("0123456789abcdefghijklmn"),
}


@pytest.mark.parametrize("encoded", ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize("around", ["{}", "app/1 (key={}; x)", "token%20{}/1"])
def test_a_key_is_hidden_however_it_is_percent_encoded(encoded: str, around: str) -> None:
    told = UserAgents(["hv_live_"]).text(around.replace("{}", encoded).encode())
    assert HIDDEN in told
    assert encoded not in told
    assert told.startswith("app/1") == around.startswith("app/1")


@pytest.mark.parametrize(
    "agent", ["WeChat%20App/1.0 (%E5%BE%AE%E4%BF%A1; 100%)", "%", "%%", "%zz hv_live", "50%25 off"]
)
def test_other_escapes_stay_as_they_came(agent: str) -> None:
    assert UserAgents(["hv_live_"]).text(agent.encode()) == agent
