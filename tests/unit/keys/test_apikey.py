import secrets
from random import Random

import pytest

from sidecar.core.apikey import ALPHABET, Hasher, KeyFormat, Pepper, Secret, looks_secret, peppers_from, without_keys

PREFIXES = ("hv_live_", "hv_test_")
KEY = KeyFormat().make("hv_live_", Random(1).randrange)  # noqa: S311 - the same in every worker of a run
ONE, TWO = Pepper.of(b"the first pepper of all"), Pepper.of(b"the second pepper")


def test_a_key_holds_at_least_128_random_bits() -> None:
    asked: list[int] = []

    def randbelow(below: int) -> int:
        asked.append(below)
        return secrets.randbelow(below)

    KeyFormat(length=28, checksum_length=6).make("hv_", randbelow)
    assert sum(below.bit_length() - 1 for below in asked) >= 128
    with pytest.raises(ValueError, match="at least 28"):
        KeyFormat(length=27, checksum_length=6)
    with pytest.raises(ValueError, match="128 random bits"):
        KeyFormat(length=43, checksum_length=-1)


def test_the_random_part_is_the_whole_of_what_was_drawn() -> None:
    made = KeyFormat(length=24, checksum_length=0)
    assert made.make("", lambda below: below - 1) == "z" * 24
    assert made.make("", lambda below: 0) == "0" * 24
    assert made.make("", lambda below: 62) == "0" * 22 + "10"


@pytest.mark.parametrize(("length", "checksum"), [(43, 6), (32, 6), (26, 4), (27, 5), (40, 0), (43, 8)])
def test_a_key_has_its_length_after_the_prefix_and_is_well_formed(length: int, checksum: int) -> None:
    made = KeyFormat(length=length, checksum_length=checksum)
    for _ in range(200):
        key = made.make("hv_test_", secrets.randbelow)
        assert len(key) == len("hv_test_") + length
        assert made.check(key, PREFIXES) == "hv_test_"


def test_the_checksum_is_the_crc32_of_the_preceding_text() -> None:
    # zlib.crc32 is 0x7b46e702; in base62 by hand, 2Fy8nq.
    assert KeyFormat().make("hv_live_", lambda below: 0) == "hv_live_" + "0" * 37 + "2Fy8nq"
    assert KeyFormat(length=41, checksum_length=4).make("hv_live_", lambda below: 0).endswith("0" * 37 + "y8nq")
    assert KeyFormat(length=45, checksum_length=8).make("hv_live_", lambda below: 0).endswith("0" * 37 + "002Fy8nq")


def test_every_substitution_of_one_character_is_refused() -> None:
    made = KeyFormat()
    for place in range(len("hv_live_"), len(KEY)):
        for character in ALPHABET:
            if character != KEY[place]:
                assert made.check(KEY[:place] + character + KEY[place + 1 :], PREFIXES) is None


def test_a_swap_of_neighbours_is_refused() -> None:
    made = KeyFormat()
    for place in range(len("hv_live_"), len(KEY) - 1):
        swapped = KEY[:place] + KEY[place + 1] + KEY[place] + KEY[place + 2 :]
        assert swapped == KEY or made.check(swapped, PREFIXES) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY + "\n",
        "\n" + KEY,
        KEY + " ",
        KEY[:-1],
        KEY + "0",
        f'"{KEY}"',
        KEY.removeprefix("hv_live_"),
        KEY.upper().replace("HV_LIVE_", "hv_live_"),
        "hv_live_" + "é" * 43,
        "hv_live_" + "\u0661" * 43,
        "hv_live_" + "_" * 43,
        "hv_live_" + "\x00" * 43,
        "hv_dev_" + KEY.removeprefix("hv_live_"),
        "hv_test_" + KEY.removeprefix("hv_live_"),
    ],
)
def test_anything_but_an_exact_key_is_refused(text: str) -> None:
    assert KeyFormat().check(text, PREFIXES) is None


def test_a_prefix_that_begins_another_does_not_hide_it() -> None:
    made = KeyFormat()
    for prefix in ("hv_", "hv_live_"):
        key = made.make(prefix, secrets.randbelow)
        assert made.check(key, ("hv_", "hv_live_")) == prefix
        assert made.check(key, {"hv_live_": "live", "hv_": "all"}) == prefix


def test_digests_are_those_of_openssl() -> None:
    plain = bytes.fromhex("215bb76a10a3fd787c375259b832060443463276594864d0efeb422f13eee2f0")
    keyed = bytes.fromhex("71d4927ea71c77558083f5331f3ecd419e994f2e0d951582811d4c91ccec7f5a")
    assert Hasher().for_new("hv_live_abc") == (plain, "sha256")
    assert Hasher().candidates("hv_live_abc") == {plain: "sha256"}
    assert Hasher([ONE]).for_new("hv_live_abc") == (keyed, f"hmac-sha256:{ONE.id}")


def test_the_first_pepper_is_that_of_new_keys_and_every_one_is_tried() -> None:
    both = Hasher([TWO, ONE])
    assert both.for_new(KEY) == Hasher([TWO]).for_new(KEY)
    assert both.for_new(KEY)[1] == f"hmac-sha256:{TWO.id}"
    assert dict([Hasher([ONE]).for_new(KEY), Hasher([TWO]).for_new(KEY), Hasher().for_new(KEY)]) == both.candidates(KEY)


def test_peppers_come_from_the_environment() -> None:
    environ = {"SIDECAR_PEPPER": "a new and long pepper", "SIDECAR_PEPPER_PREVIOUS": "an old and long pepper"}
    assert peppers_from({}) == ()
    assert peppers_from(environ) == (Pepper.of(b"a new and long pepper"), Pepper.of(b"an old and long pepper"))


@pytest.mark.parametrize(
    "environ",
    [
        {"SIDECAR_PEPPER": "hunter2"},
        {"SIDECAR_PEPPER": ""},
        {"SIDECAR_PEPPER": "a new and long pepper", "SIDECAR_PEPPER_PREVIOUS": "hunter2"},
        {"SIDECAR_PEPPER_PREVIOUS": "hunter2 hunter2 hunter2"},
    ],
)
def test_an_unsuitable_pepper_is_refused_without_being_shown(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="SIDECAR_PEPPER") as refused:
        peppers_from(environ)
    assert "hunter2" not in str(refused.value)


def test_secrets_do_not_show_in_a_repr() -> None:
    assert "pepper of all" not in repr(ONE) + repr(Hasher([ONE])) + str(ONE)
    assert KEY not in repr(Secret(text=KEY)) + str(Secret(text=KEY))


@pytest.mark.parametrize(
    ("text", "secret"), [(KEY, True), (KEY + "\n", True), (KEY[:12], False), ("key_" + "a" * 20, False)]
)
def test_a_plaintext_is_distinguished_from_an_id_and_a_prefix(text: str, secret: bool) -> None:
    assert looks_secret(text) is secret


def test_a_long_text_is_searched_for_keys_in_a_moment() -> None:
    for text in ("_" * 100_000, "a" * 100_000 + "!", (KEY + "-") * 2_000 + "!"):
        assert not looks_secret(text)
        assert KEY not in without_keys(text)
    assert looks_secret("_" * 100_000 + KEY + " " * 100_000)
    assert without_keys(f"no scope '{KEY}', no 'hv_live_Pb0A1uey'") == "no scope 'hv_live_Pb0A…', no 'hv_live_Pb0A1uey'"
