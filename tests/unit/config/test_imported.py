"""Keys made elsewhere, as the configuration names them."""

import pytest

from sidecar.core.apikey import ForeignKeys
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

OURS = "keys:\n  environments: {live: hv_live_}\n  imported: "
WRONG = {
    "the beginning of ours": (
        "[{prefix: hv_}]",
        "keys.imported[0].prefix: begins the prefix of keys of the environment 'live': write it out, 'hv_live_'",
    ),
    "a pepper for nothing": ("[{prefix: k, pepper: p}]", "keys.imported[0].pepper: sha256 takes no pepper"),
    "no pepper": ("[{prefix: k, hash: hmac-sha256}]", "keys.imported[0].pepper: hmac-sha256 needs one"),
    "an empty pepper": (
        "[{prefix: k, hash: hmac-sha256, pepper: ''}]",
        "keys.imported[0].pepper: hmac-sha256 needs one",
    ),
    "an unknown hash": ("[{prefix: k, hash: md5}]", "keys.imported[0].hash: must be"),
    "a prefix of two words": ("[{prefix: a b}]", "keys.imported[0].prefix: must be up to 64 printable"),
    "no prefix at all": ("[{}]", "keys.imported[0].prefix: missing"),
    "one twice": ("[{prefix: k}, {prefix: k}]", "keys.imported[1]: is listed twice"),
    "everything, where something passes": (
        '[{prefix: ""}]\n  pass_through: [{header: authorization, scheme: bearer}]',
        "keys.imported[0].prefix: is empty, which takes every credential",
    ),
}


def test_imported_keys_are_read(loading: Loading) -> None:
    entries = '[{prefix: sk_}, {prefix: "", hash: sha256-pepper-last, pepper: "${OLD:-salt}"}]'
    assert loading(MINIMAL + OURS + entries).keys.imported == (
        ForeignKeys(prefix="sk_"),
        ForeignKeys(prefix="", hash="sha256-pepper-last", pepper=b"salt"),
    )


@pytest.mark.parametrize("prefix", ["hv_live_", "hv_live_old_"])
def test_keys_that_exist_already_may_keep_our_prefix(loading: Loading, prefix: str) -> None:
    config = loading(MINIMAL + OURS + f"[{{prefix: {prefix}}}]")
    assert config.keys.imported == (ForeignKeys(prefix=prefix),)


def test_an_empty_prefix_goes_with_what_passes_elsewhere(loading: Loading) -> None:
    config = loading(MINIMAL + OURS + '[{prefix: ""}]\n  pass_through: [{header: Authorization, scheme: Basic}]')
    assert config.keys.imported == (ForeignKeys(prefix=""),)


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_impossible_settings_are_reported(problems: Complaining, text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(MINIMAL + OURS + text))


WRONG_LISTS = {
    "keys: {from: [{header: Sec-WebSocket-Protocol, scheme: Bearer}]}": "keys.from[0].scheme: a key is one of several",
    "keys: {from: [{header: X-A}, {header: sec-websocket-protocol}], imported: [{prefix: ''}]}": (
        "keys.from[1]: keys without a prefix (keys.imported) cannot be told from the protocols beside them"
    ),
}


@pytest.mark.parametrize(("keys", "expected"), WRONG_LISTS.items())
def test_a_key_that_could_be_a_protocol_name_is_an_error(problems: Complaining, keys: str, expected: str) -> None:
    (line,) = problems(f"{MINIMAL}{keys}\n")
    assert expected in line
