"""The scope catalogue: what a grant includes."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.policy import Catalogue, Scope

CATALOGUE = Catalogue(
    [
        Scope(name="streams:read"),
        Scope(name="streams:write", includes=("streams:read",)),
        Scope(name="vod:read"),
        Scope(name="vod:write", includes=("vod:read",)),
        Scope(name="operator", includes=("vod:*", "streams:write")),
    ]
)


def test_a_scope_is_itself_with_all_that_it_includes() -> None:
    assert CATALOGUE.expand(["streams:read"]) == {"streams:read"}
    assert CATALOGUE.expand(["streams:write"]) == {"streams:write", "streams:read"}
    assert CATALOGUE.expand(["streams:read", "vod:read"]) == {"streams:read", "vod:read"}
    assert CATALOGUE.expand([]) == frozenset()


def test_inclusion_is_transitive() -> None:
    assert CATALOGUE.expand(["operator"]) == {"operator", "vod:read", "vod:write", "streams:read", "streams:write"}


def test_wildcards_include_what_the_catalogue_has() -> None:
    assert CATALOGUE.expand(["*"]) == set(CATALOGUE.scopes)
    assert CATALOGUE.expand(["vod:*"]) == {"vod:read", "vod:write"}


def test_a_wildcard_also_grants_a_scope_that_was_added_later() -> None:
    later = Catalogue([*CATALOGUE.scopes.values(), Scope(name="vod:delete")])
    assert "vod:delete" in later.expand(["*"])
    assert "vod:delete" in later.expand(["vod:*"])
    assert "vod:delete" not in later.expand(["vod:write"])


def test_a_name_that_the_catalogue_lost_grants_nothing() -> None:
    for name in ("gone", "vod", "vod:", "v*", "vod*", ":*", "**", "", "VOD:read", "vod:read "):
        assert CATALOGUE.expand([name]) == frozenset()
        assert CATALOGUE.unknown([name]) == [name]


def test_known_names_and_wildcards_are_not_unknown() -> None:
    assert CATALOGUE.unknown(["vod:read", "vod:*", "*"]) == []
    assert Catalogue().unknown(["*"]) == []


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef*"), max_size=3)))
def test_inclusions_that_go_round_in_circles_end(includes: dict[str, list[str]]) -> None:
    catalogue = Catalogue([Scope(name=name, includes=tuple(more)) for name, more in includes.items()])
    for name in includes:
        granted = catalogue.expand([name])
        assert name in granted
        assert catalogue.expand(granted) == granted
