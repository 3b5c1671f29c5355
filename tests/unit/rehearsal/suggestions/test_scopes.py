"""The smallest set of scopes that some policies need."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.model import Policy
from sidecar.core.policy import Catalogue, Scope, missing_scopes
from sidecar.rehearsal.suggestions.scopes import Needs, ScopeSets, needs_of

NAMES = ("a", "b", "c", "d", "n:e", "n:f")

catalogues = st.builds(
    lambda includes: Catalogue(
        Scope(name=name, includes=tuple(each)) for name, each in zip(NAMES, includes, strict=True)
    ),
    st.lists(st.lists(st.sampled_from((*NAMES, "n:*")), max_size=2), min_size=len(NAMES), max_size=len(NAMES)),
)
some_scopes = st.frozensets(st.sampled_from(NAMES), max_size=3)
policies = st.builds(
    Policy, any_scopes=some_scopes, all_scopes=some_scopes, public=st.sampled_from((False,) * 9 + (True,))
)
held = st.lists(st.sampled_from((*NAMES, "*", "n:*", "lost")), max_size=5, unique=True)


def let_pass(policies: Iterable[Policy], scopes: frozenset[str]) -> bool:
    return not any(missing_scopes(policy, scopes) for policy in policies if not policy.public)


def all_sets(catalogue: Catalogue, available: frozenset[str]) -> Iterable[frozenset[str]]:
    for number in range(len(available) + 1):
        yield from (catalogue.expand(names) for names in combinations(sorted(available), number))


@given(catalogues, st.lists(policies, max_size=5), held)
def test_no_set_is_smaller(catalogue: Catalogue, demands: Sequence[Policy], held: Sequence[str]) -> None:
    found = ScopeSets(catalogue, demands).smallest(held, needs_of(demands))
    fitting = [scopes for scopes in all_sets(catalogue, catalogue.expand(held)) if let_pass(demands, scopes)]
    if found is None:
        assert fitting == []
        return
    assert found.exact and len(found.scopes) == found.at_least == min(map(len, fitting))
    assert found.scopes == catalogue.expand(found.names) <= catalogue.expand(held)
    assert let_pass(demands, found.scopes)
    fewest = min(number for number in range(len(NAMES) + 1)
                 if any(catalogue.expand(names) == found.scopes for names in combinations(NAMES, number)))  # fmt: skip
    assert len(found.names) == fewest


@given(catalogues, st.lists(policies, min_size=2, max_size=5), held)
def test_the_order_of_requirements_and_scopes_does_not_matter(
    catalogue: Catalogue, demands: Sequence[Policy], held: Sequence[str]
) -> None:
    one = ScopeSets(catalogue, demands).smallest(held, needs_of(demands))
    other = ScopeSets(catalogue, [*demands][::-1]).smallest([*held][::-1], needs_of([*demands][::-1]))
    assert one == other


@given(catalogues, st.lists(policies, max_size=6), held, st.integers(0, 3))
def test_an_early_result_lets_all_requests_pass_and_gives_a_lower_bound(
    catalogue: Catalogue, demands: Sequence[Policy], held: Sequence[str], steps: int
) -> None:
    found = ScopeSets(catalogue, demands, most_steps=steps).smallest(held, needs_of(demands))
    smallest = ScopeSets(catalogue, demands).smallest(held, needs_of(demands))
    if found is None or smallest is None:
        assert found is smallest
        return
    assert let_pass(demands, found.scopes) and found.scopes <= catalogue.expand(held)
    assert found.at_least <= len(smallest.scopes) <= len(found.scopes)
    assert not found.exact or len(found.scopes) == len(smallest.scopes)


CATALOGUE = Catalogue(
    (Scope(name="read"), Scope(name="write", includes=("read",)), Scope(name="admin", includes=("write", "read")),
     Scope(name="videos:list"), Scope(name="videos:delete"), Scope(name="audit"))
)  # fmt: skip


def any_of(*names: str) -> Policy:
    return Policy(any_scopes=frozenset(names))


def all_of(*names: str) -> Policy:
    return Policy(all_scopes=frozenset(names))


ROUTES = (any_of("read", "write"), any_of("write"), any_of("admin"), any_of("admin"), any_of("videos:list", "audit"),
          any_of("audit"), all_of("videos:list", "videos:delete"))  # fmt: skip


@pytest.mark.parametrize(
    ("held", "used", "names"),
    [
        pytest.param(("admin",), (any_of("read", "write"),), ("read",), id="what-a-scope-includes-is-narrower"),
        pytest.param(("write",), (any_of("write"), any_of("read")), ("write",), id="what-is-included-is-not-named"),
        pytest.param(("*",), (any_of("videos:list", "videos:delete"),), ("videos:delete",), id="every-scope"),
        pytest.param(("videos:*",), (all_of("videos:list"),), ("videos:list",), id="every-scope-of-a-kind"),
        pytest.param(("read", "audit"), (), (), id="nothing-used"),
        pytest.param(("videos:list", "audit"), (any_of("videos:list", "audit"),), ("videos:list",),
                     id="that-which-opens-fewer-routes"),
        pytest.param(("read", "lost"), (any_of("read", "lost"),), ("read",), id="a-scope-that-the-catalogue-lost"),
        pytest.param(("read",), (Policy(public=True, any_scopes=frozenset({"audit"})),), (), id="a-public-route"),
    ],
)  # fmt: skip
def test_the_narrowest_is_chosen(held: Sequence[str], used: Sequence[Policy], names: Sequence[str]) -> None:
    found = ScopeSets(CATALOGUE, ROUTES).smallest(held, needs_of(used))
    assert found is not None and found.names == tuple(names)


@pytest.mark.parametrize("used", [any_of("audit"), all_of("read", "audit")], ids=["any", "all"])
def test_what_the_key_does_not_hold_is_never_suggested(used: Policy) -> None:
    assert ScopeSets(CATALOGUE, ROUTES).smallest(("read",), needs_of([used])) is None


@pytest.mark.parametrize(
    ("held", "needed", "used"),
    [
        pytest.param(("admin", "audit", "lost"), ("read",), ("admin",), id="all-that-gives-it"),
        pytest.param(("admin", "read"), ("read",), ("read",), id="the-narrower-one-of-two"),
        pytest.param(("*", "audit"), ("read", "audit"), ("*", "audit"), id="each-for-its-own"),
        pytest.param(("audit",), (), (), id="none"),
    ],
)
def test_a_scope_is_used_where_no_narrower_one_gives_what_is_needed(
    held: Sequence[str], needed: Sequence[str], used: Sequence[str]
) -> None:
    assert ScopeSets(CATALOGUE, ROUTES).used(held, frozenset(needed)) == tuple(used)


def test_a_hard_search_ends_early_and_says_that_the_set_may_not_be_minimal() -> None:
    names = [f"s{number}" for number in range(60)]
    demands: Needs = needs_of(
        any_of(*(names[(start + step) % 60] for step in (0, 1, 7, 13, 29, 31))) for start in range(60)
    )
    found = ScopeSets(Catalogue(Scope(name=name) for name in names), ()).smallest(names, demands)
    assert found is not None and not found.exact and 0 < found.at_least < len(found.scopes) < 30
