"""Path patterns: their syntax, and how two patterns relate."""

import pytest

from sidecar.core.patterns import parse_pattern


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
        "/{a}{b}",
        "/{a}-{b}",
        "/{a}%20",
        "/;{a}",
        "/{a}}",
        "/a*{b}",
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


FIXED = {
    ("/{id}:cancel", "/{id}"): "/{id}:cancel",
    ("/a-{x}", "/{y}"): "/a-{x}",
    ("/a-b-{x}", "/a-{x}"): "/a-b-{x}",
    ("/a.json", "/{name}.json"): "/a.json",
    ("/{a}/x", "/y/{b}"): "/y/x",
    ("/{n}", "/p/**"): "/p",
    ("/p-{x}/**", "/{y}/z/{w}"): "/p-{x}/z/{w}",
    ("/{x}/**", "/a/{x}/b"): "/a/{x}/b",
    ("/p{y}/{x}", "/{x}/q{y}"): "/p{y}/q{y2}",
}


@pytest.mark.parametrize(("pair", "expected"), FIXED.items())
def test_what_two_patterns_share_is_a_pattern(pair: tuple[str, str], expected: str) -> None:
    one, other = map(parse_pattern, pair)
    assert [str(shared) for shared in one.shared(other)] == [expected]
    assert one.meets(other)
    assert [shared.shape for shared in other.shared(one)] == [parse_pattern(expected).shape]


def test_texts_around_a_parameter_may_touch_in_what_two_patterns_share() -> None:
    shared = parse_pattern("/a{x}").shared(parse_pattern("/{x}.b"))
    assert [str(pattern) for pattern in shared] == ["/a{x}.b", "/a.b"]
    shared = parse_pattern("/aba{x}").shared(parse_pattern("/{x}aba"))
    assert [str(pattern) for pattern in shared] == ["/aba{x}aba", "/abaaba", "/ababa"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("/{id}:cancel", "/{id}:pause"), ("/a-{x}", "/b-{x}"), ("/a-{x}", "/a-"), ("/{x}.json", "/.json")],
)
def test_patterns_with_other_fixed_text_do_not_meet(one: str, other: str) -> None:
    assert not parse_pattern(one).meets(parse_pattern(other))
    assert parse_pattern(one).shared(parse_pattern(other)) == ()


def test_lower_case_leaves_the_names_of_parameters() -> None:
    assert parse_pattern("/Admin/{orgID}/**").lower() == parse_pattern("/admin/{orgID}/**")
    assert parse_pattern("/Job-{jobID}:Stop").lower() == parse_pattern("/job-{jobID}:stop")
