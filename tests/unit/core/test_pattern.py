"""Path patterns: what may be written, and how two patterns stand to each other."""

import pytest

from sidecar.core.routing import parse_pattern


def test_a_pattern_is_literals_parameters_and_a_rest() -> None:
    pattern = parse_pattern("/v1/{org}/x/{id}/**")
    assert pattern.segments == ("v1", "{org}", "x", "{id}")
    assert pattern.rest
    assert pattern.params == ("org", "id")
    assert not parse_pattern("/v1").rest


def test_a_last_slash_is_an_empty_segment() -> None:
    assert parse_pattern("/a/").segments == ("a", "")
    assert parse_pattern("/").segments == ("",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/b",
        "/a//b",
        "//",
        "/**/a",
        "/a/***",
        "/a*",
        "/*",
        "/{}",
        "/{a}b",
        "/{a",
        "/a}",
        "/{1a}",
        "/{a}/{a}",
        "/.",
        "/..",
        "/a/../b",
        "/a b",
        "/a%20b",
        "/a;b",
        "/a?b",
        "/a#b",
        "/é",
        "/a\\b",
        "/a//**",
    ],
)
def test_a_pattern_that_could_never_match_is_an_error_that_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("/a/b", "/a/{x}"),
        ("/a/b", "/a/**"),
        ("/a", "/a/**"),
        ("/a/", "/a/**"),
        ("/a/{x}", "/a/**"),
        ("/a/b/**", "/a/**"),
        ("/a/b/**", "/{x}/**"),
        ("/a/{x}", "/{y}/{x}"),
        ("/**", "/**"),
        ("/a/{x}", "/a/{y}"),
    ],
)
def test_a_pattern_within_another_also_meets_it(narrow: str, wide: str) -> None:
    assert parse_pattern(narrow).within(parse_pattern(wide))
    assert parse_pattern(narrow).meets(parse_pattern(wide))
    assert parse_pattern(wide).meets(parse_pattern(narrow))


@pytest.mark.parametrize(
    ("one", "other"), [("/a", "/b"), ("/a", "/a/"), ("/a/", "/a/{x}"), ("/a/b", "/a"), ("/a/{x}/c", "/a/b/d")]
)
def test_patterns_without_a_common_path_do_not_meet(one: str, other: str) -> None:
    assert not parse_pattern(one).meets(parse_pattern(other))
    assert not parse_pattern(one).within(parse_pattern(other))


@pytest.mark.parametrize(("one", "other"), [("/a/{x}", "/{y}/b"), ("/{x}/b/**", "/a/**"), ("/a/{x}/c", "/a/b/{y}")])
def test_patterns_may_meet_without_either_being_within_the_other(one: str, other: str) -> None:
    assert parse_pattern(one).meets(parse_pattern(other))
    assert not parse_pattern(one).within(parse_pattern(other))
    assert not parse_pattern(other).within(parse_pattern(one))


def test_lower_case_leaves_the_names_of_parameters() -> None:
    assert parse_pattern("/Admin/{orgID}/**").lower() == parse_pattern("/admin/{orgID}/**")
