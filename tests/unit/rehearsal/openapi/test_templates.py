"""Path templates become the nearest pattern that matches all of their paths, with a remark if it is wider."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.patterns import parse_pattern
from sidecar.rehearsal.openapi.templates import template_of

EXACT = {
    "/": "/",
    "/v1/items/{id}": "/v1/items/{id}",
    "/v1/items/": "/v1/items/",
    "/V1/Items": "/V1/Items",
    "/x.json": "/x.json",
    "/{id}.json": "/{id}.json",
    "/operations/{name}:cancel": "/operations/{name}:cancel",
    "/Users({id})": "/Users({id})",
    "/$metadata": "/$metadata",
    "/users/@me": "/users/@me",
    "/a%2Db": "/a-b",
    "/{account-id}/{2nd}/{account-id}": "/{account_id}/{_2nd}/{account_id2}",
    "/{a/b}": "/{a_b}",
    "/{n:[0-9]+}": "/{n}",
}
WIDER = {
    "/compare/{base}...{head}": ("/compare/{base_head}", "has several parameters"),
    "/{owner}-{repo}/x": ("/{owner_repo}/x", "has several parameters"),
    "/v{major}.{minor}.json": ("/v{major_minor}.json", "has several parameters"),
    "/contents/{path}": ("/contents/**", "may contain slashes"),
    "/files/{name+}": ("/files/**", "may contain slashes"),
    "/files/{+name}": ("/files/**", "may contain slashes"),
    "/files/{name:path}": ("/files/**", "may contain slashes"),
    "/files/{name:.*}": ("/files/**", "may contain slashes"),
    "/files/{name*}.zip": ("/files/**", "may contain slashes"),
    "/files/*": ("/files/**", "may contain slashes"),
    "/{name+}/meta": ("/{name}/meta", "only at its end: one segment"),
    "/a b": ("/a{value}", "contains what no pattern can"),
    "/%C3%A9": ("/{value}", "contains what no pattern can"),
    "/a;v={v}": ("/a{v}", "contains what no pattern can"),
    "/{open": ("/{value}", "contains what no pattern can"),
    "/%2e%2e/x": ("/{value}/x", "contains what no pattern can"),
    "/:id/x": ("/{id}/x", "is treated as a parameter"),
    "/a?b={c}": ("/a", "the path alone"),
    "/a#b": ("/a", "the path alone"),
    "/a{?b,c}": ("/a", "the path alone"),
    "//a//b": ("/a/b", "can never match"),
    "/a/./b/..": ("/a/b/", "can never match"),
}


@pytest.mark.parametrize(("text", "pattern"), EXACT.items(), ids=list(EXACT))
def test_templates_that_a_pattern_can_express_are_exact(text: str, pattern: str) -> None:
    template = template_of(text)
    assert (str(template.pattern), template.remarks) == (pattern, ())


@pytest.mark.parametrize(("text", "pattern", "remark"), [(text, *wider) for text, wider in WIDER.items()], ids=WIDER)
def test_inexpressible_paths_are_widened_with_a_remark(text: str, pattern: str, remark: str) -> None:
    template = template_of(text)
    assert str(template.pattern) == pattern
    assert [told for told in template.remarks if remark in told]


def test_a_parameter_that_is_known_to_hold_slashes_does() -> None:
    assert str(template_of("/ref/{ref}", slashes=["ref"]).pattern) == "/ref/**"
    assert str(template_of("/ref/{other}", slashes=["ref"]).pattern) == "/ref/{other}"


def test_the_length_of_a_template_counts_once() -> None:
    for text in ("/" * 4000, "/" + "{" * 4000, "/" + "}" * 4000, "/" + "{a}" * 1300, "/%" * 2000):
        template_of(text)


@given(st.text(alphabet="ab/{}.:*%2E?#+- é~\\\n", max_size=40))
def test_every_template_becomes_a_pattern(text: str) -> None:
    pattern = template_of(text).pattern
    assert parse_pattern(str(pattern)) == pattern
