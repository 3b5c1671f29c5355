"""Placeholders in header templates and in JSON bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.templates import ERROR_PLACEHOLDERS, IDENTITY_PLACEHOLDERS, render, render_text, unknown_placeholders

VALUES = {"n": 5, "s": "text", "l": ["a", "b"], "none": None, "yes": True, "braced": "{n}"}


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("{n}", 5),
        ("{l}", ["a", "b"]),
        ("{yes}", True),
        ("{none}", None),
        ("{absent}", None),
        ("{n} of {s}", "5 of text"),
        (" {n}", " 5"),
        ("{l}.", "a b."),
        ("[{none}{absent}]", "[]"),
        ("{{n}}", "{n}"),
        ("{{{n}}}", "{5}"),
        ("{", "{"),
        ("{braced}!", "{n}!"),
        (7, 7),
        (False, False),
        (None, None),
        ({"a": {"b": ["{n}", "x{n}"]}}, {"a": {"b": [5, "x5"]}}),
        ({"{n}": 1}, {"{n}": 1}),
    ],
)
def test_a_whole_placeholder_keeps_its_type_and_a_part_becomes_text(template: object, result: object) -> None:
    rendered = render(template, VALUES)
    assert rendered == result
    assert type(rendered) is type(result)


def test_text_is_always_text() -> None:
    assert render_text("{n}", VALUES) == "5"
    assert render_text("{l}", VALUES) == "a b"
    assert render_text("{none}{absent}", VALUES) == ""


@given(st.text())
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert render_text("<{s}>", {"s": value, "n": "never"}) == f"<{value}>"


def test_unknown_placeholders_are_found_everywhere() -> None:
    template = {"a": ["{quota.limit}", {"b": "x {quota.limits} {reason}"}], "c": "{key.id}", "d": "{{no}}", "e": 1}
    assert unknown_placeholders(template, ERROR_PLACEHOLDERS) == ["quota.limits", "key.id"]


def test_metadata_of_any_name_is_known() -> None:
    assert unknown_placeholders("{key.metadata.user_id} {request.id}", IDENTITY_PLACEHOLDERS) == []
    for text in ("{key.metadata.}", "{key.metadata}", "{key.secret}", "{key.digest}", "{}", "{ key.id }"):
        assert unknown_placeholders(text, IDENTITY_PLACEHOLDERS)
