"""Methods: which tokens may pass, and which spellings of a method may not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import Denied, Reason
from sidecar.core.routing import KNOWN_METHODS, NEVER_ROUTED, MethodRules

TOKENS = st.text("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", min_size=1)


def passes(method: str, *named: str) -> bool:
    try:
        MethodRules(named).check(method)
    except Denied as denied:
        assert denied.reason is Reason.METHOD_NOT_ALLOWED
        return False
    return True


@given(TOKENS)
def test_a_token_passes_where_it_is_a_known_method_or_named_and_no_other_spelling_of_one(method: str) -> None:
    assert passes(method) == (method in KNOWN_METHODS - NEVER_ROUTED)
    assert passes(method, method) == (method.upper() not in KNOWN_METHODS or method in KNOWN_METHODS - NEVER_ROUTED)


@pytest.mark.parametrize("method", sorted(KNOWN_METHODS))
def test_a_known_method_in_another_case_is_refused_even_where_a_route_names_it(method: str) -> None:
    for spelling in (method.lower(), method.title(), method[:-1] + method[-1].lower()):
        assert not passes(spelling)
        assert not passes(spelling, spelling)
    assert passes(method) == (method not in NEVER_ROUTED)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "connect", "Trace"])
def test_no_route_opens_a_method_that_is_never_routed(method: str) -> None:
    assert not passes(method, method.upper())
    assert not passes(method, method)


def test_a_method_that_a_route_names_passes_in_that_case_alone() -> None:
    assert passes("list", "list")
    assert not any(passes(method, "list") for method in ("LIST", "List", "lisT"))
    assert passes("LIST", "LIST")
    assert not passes("list", "LIST")


@pytest.mark.parametrize(
    "method", ["", " ", "G ET", "GET ", "GET\n", "GET\0", "a/b", "a,b", "(x)", "É", "\udcff", "\u017fET"]
)
def test_a_method_must_be_a_token(method: str) -> None:
    assert not passes(method)
