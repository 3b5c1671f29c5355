"""An invalid file of tests: all errors at once, each with its line, and never a traceback."""

import pytest

from sidecar.config.yaml_tree import read_nodes, read_table
from tests.unit.rehearsal.policy_tests.conftest import Place


def test_all_errors_are_reported_at_once_with_location_and_suggestion(place: Place) -> None:
    text = """\
cases:
  - GET /items as raeder: allow
  - GET /items: insufficient_scop
  - GET /items as reader: {route: GET /itms/**, takes: [fwe], remaining: {manny: 1}, forwarded: {upstream: biling}}
  - {request: GET /items, expect: allow, hedaers: {A: b}}
  - {request: GET, expect: allow}
  - {request: GET /items as reader, key: writer, expect: allow}
  - {request: GET /items, used: {fewer: 1}, peer: somewhere, expect: allow}
  - {request: GET /items}
  - {request: GET /items, key: {scopes: [raed], plan: prox}, expect: allow}
groups:
  - {name: none, cases: []}
tables:
  - {keys: [reader, writer], requests: {GET /items: [allow], GET /open as reader: allow}}
"""
    found = place.problems(text)
    places = [problem.partition(" ")[0].removeprefix("policy.tests.yml:") for problem in found]
    assert sorted({int(place.partition(":")[0]) for place in places}) == [7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19]
    told = "\n".join(found)
    for meant in ("'reader'", "'insufficient_scope'", "'GET /items/**'", "'few'", "'many'", "'billing'", "'headers'"):
        assert f"did you mean {meant}?" in told, meant
    assert "unknown scope 'raed' (did you mean 'read'?)" in told and "unknown plan 'prox'" in told
    assert "has 1 word for 2 keys" in told and "leave out `as …`" in told and "missing: write `expect: allow`" in told


def test_a_key_that_could_not_be_issued_cannot_be_used_in_a_test(place: Place) -> None:
    keys = "  none: {}\n  odd: {environment: prod, quotas: {fwe: 1}}\n  idle: {status: idle}\n"
    head = f"config: sidecar.yaml\nkeys:\n{keys}"
    found = place.problems("cases: [GET /items as odd: allow]", head=head)
    assert [int(problem.split(":")[1]) for problem in found] == [3, 4, 4, 5]


def test_two_keys_are_never_the_same(place: Place) -> None:
    head = "config: sidecar.yaml\nkeys:\n  a: {id: same, scopes: [read]}\n  b: {id: same, scopes: [read]}\n"
    [problem] = place.problems("cases: [GET /open: allow]", head=head)
    assert problem.startswith("policy.tests.yml:4:3: keys.b: has the id or the secret of the key")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("\ufeff", "the file is empty"),
        ("null", "the file is empty"),
        ("config: sidecar.yaml\n", "has no cases"),
        ("config: sidecar.yaml\ncases: []\n", "must not be empty"),
        ("config: sidecar.yaml\ngroups: []\n", "has no cases"),
        ("cases: [GET /open: allow]", "names no configuration"),
        ("[]", "must be a mapping, not a list"),
        ("text", "must be a mapping, not a single value"),
        ("config: [a]\ncases: [GET /open: allow]", "must be text, not a list"),
        ("config: sidecar.yaml\nconfig: sidecar.yaml\ncases: [GET /open: allow]", "duplicate key, first in line 1"),
        ("config: sidecar.yaml\ncsaes: [GET /open: allow]", "did you mean 'cases'?"),
        ("config: sidecar.yaml\ncases: [GET /open]", "must be a mapping, not a single value"),
        ("config: sidecar.yaml\ncases: [{GET /open: allow, GET /x: allow}]", "must have one key"),
        ("config: sidecar.yaml\ncases: [{GET /open: {}}]", "expects nothing"),
        ("config: sidecar.yaml\ncases: [{GET /open: 99}]", "must be allow, deny"),
        ("config: sidecar.yaml\ncases: [{GET /öpen: allow}]", "printable ASCII only"),
        ("config: sidecar.yaml\ncases: [{GET /open: {decision: 403}}]", "written as `status: 403`"),
        ("config: sidecar.yaml\nnow: noon\ncases: [GET /open: allow]", "must be a date or a time"),
        ("config: sidecar.yaml\ncases: [{request: GET /open, expect: allow, times: 0}]", "must be at least 1"),
        ("config: sidecar.yaml\ncases: [{request: GET /open, expect: allow, times: 10000000}]", "must be at most"),
        (
            "config: sidecar.yaml\ncases: [{request: GET /open, expect: allow, headers: {'a b': c}}]",
            "must be a name of",
        ),
        (
            'config: sidecar.yaml\ncases: [{request: GET /open, expect: allow, headers: {a: "b\\nc"}}]',
            "must be one line",
        ),
        ("config: sidecar.yaml\ncases: [{request: GET /x, expect: allow, after: 36501d}]", "must be at most 36500d"),
        ("config: sidecar.yaml\nnow: 3000-01-01\ncases: [GET /open: allow]", "must be in the years 1970 to 2999"),
        ("config: sidecar.yaml\ncases: [{request: 'GET /x?k={key}', expect: allow}]", "this request has none"),
        ("cases: !!python/object:os.system [x]", "tags are not supported"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("a: *b\n", "found undefined alias"),
        ("a: &a [*a]\n", "an alias contains itself"),
        ("? [a]\n: b\n", "a key must be text"),
        ("a: [1\n", ""),
        ("\t- a", ""),
        ('a: "\\ud800"', ""),
        ("a: \x01", ""),
        ("{" * 5000, "nest"),
        ("- " * 5000, "too many or too deeply nested values"),
        ("a: " + "x" * 9_000_000, "larger than 8 MiB"),
    ],
)
def test_a_malformed_file_is_one_line_of_error(place: Place, text: str, told: str) -> None:
    found = place.problems(text, head="")
    assert found and all(problem.startswith("policy.tests.yml") for problem in found)
    assert any(told in problem for problem in found), found


@pytest.mark.parametrize("text", [b"\xff\xfe\x00\x01", b"\x00", bytes(range(256)), b"\x7fELF\x02\x01\x01"])
def test_input_that_is_not_text_is_reported(place: Place, text: bytes) -> None:
    [problem] = place.problems(text)
    assert "is not UTF-8" in problem or "does not allow" in problem or "control characters" in problem


@pytest.mark.parametrize("nested", [False, True])
def test_aliases_cannot_blow_up(place: Place, nested: bool) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 40):
        inner = f"*a{level - 1}" if nested else ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + ("[[" + inner + "]]" if nested else f"[{inner}]"))
    [problem] = place.problems("\n".join(lines), head="")
    assert "too many or too deeply nested values" in problem


def test_a_file_may_have_a_byte_order_mark_and_lines_of_windows(place: Place) -> None:
    text = b"\xef\xbb\xbf" + b"config: sidecar.yaml\r\ncases:\r\n  - GET /open: allow\r\n"
    [case] = place.read(text).cases
    assert case.where == f"{place.folder}/policy.tests.yml:3"


def test_lists_of_words_may_be_repeated_by_an_alias(place: Place) -> None:
    text = "tables: [{keys: [none, reader], requests: {GET /items: &row [deny, allow], GET /items/1: *row}}]"
    assert place.passes(text) == 4


def test_a_wrong_or_missing_configuration_is_reported_with_its_own_errors(place: Place) -> None:
    assert "missing.yaml: cannot be read" in place.problems("cases: [GET /x: allow]", head="config: missing.yaml\n")[0]
    place.config.write_text("listen: nowhere\n", encoding="utf-8")
    assert place.problems("cases: [GET /x: allow]")[0].startswith("sidecar.yaml:")


def test_variables_are_expanded_in_the_file(place: Place) -> None:
    config = place.config.read_text(encoding="utf-8")
    place.config.write_text(config.replace("http://127.0.0.1:2", "${BILLING}"), encoding="utf-8")
    assert any("BILLING is not set" in problem for problem in place.problems("cases: [GET /open: allow]"))
    assert place.passes("variables: {BILLING: http://127.0.0.1:2}\ncases: [GET /open: allow]") == 1


def test_no_problem_repeats_a_key_or_the_value_of_a_variable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", "kept-to-itself")
    pasted = "ex_live_" + "aB3" * 14
    found = place.problems(
        f"cases:\n  - GET /items as {pasted}: allow\n  - {{request: GET /items, expect: allow, key: '${{HIDDEN}}'}}\n"
    )
    assert pasted not in "".join(found) and "kept-to-itself" not in "".join(found)
    assert "looks like an API key" in found[0] and "${HIDDEN}" in found[1]


@pytest.mark.parametrize(
    "written",
    [
        "keys: {a: {scopes: [SECRET]}}",
        "keys: {a: {plan: SECRET}}",
        "keys: {a: {environment: SECRET}}",
        "keys: {a: {tenant: 'SECRET /'}}",
        "keys: {a: {quotas: {SECRET: 1}}}",
        "keys: {a: {metadata: {'SECRET /': x}}}",
        "keys: {a: {SECRET: 1}}",
        "keys: {SECRET: {scopes: [nothing]}}",
        "defaults: {key: SECRET}",
        "tables: [{keys: [none, SECRET], requests: {GET /SECRET: [allow]}}]",
        "cases: [{request: GET /open, expect: {takes: [SECRET], remaining: {SECRET: 1}, route: SECRET}}]",
        "cases: [{request: GET /open, expect: {forwarded: {upstream: SECRET}}}]",
        "cases: [{request: GET /open, expect: SECRET, used: {SECRET: 1}, peer: SECRET}]",
    ],
)
def test_no_problem_repeats_a_secret_in_a_wrong_place(place: Place, written: str) -> None:
    secret = "ex_live_" + "aB3" * 14
    text = written.replace("SECRET", secret)
    whole = text if "cases" in written or "tables" in written else f"{text}\ncases: [GET /open: allow]"
    found = place.problems(whole, head="config: sidecar.yaml\n")
    assert found and secret[:20] not in "".join(found)


def test_what_is_long_and_unknown_of_a_key_is_cut_and_what_is_known_is_not(place: Place) -> None:
    text = "keys: {a: {scopes: [hunter2-hunter2]}, b: {scopes: [raed]}}\ncases: [GET /open: allow]"
    first, second = place.problems(text, head="config: sidecar.yaml\n")
    assert "unknown scope 'hunter2-hunt…'" in first and "hunter2-hunter2" not in first
    assert "unknown scope 'raed' (did you mean 'read'?)" in second


def test_what_libyaml_reads_is_what_the_reader_of_configurations_reads(place: Place) -> None:
    """Types, places and values: numbers, times, quotes, blocks, merge keys."""
    data = (
        place.config.read_bytes()
        + b"""
x: [1, 1.5, yes, null, ~, 0x1F, 1:30, 2026-06-01T12:00:00Z, 'yes', "a\\tb", on, =, <<]
y: |
  a block
z: >-
  folded
  text
"""
    )
    assert read_table(data, "x") == read_nodes(data, "x")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("insufficient_scop", "did you mean 'insufficient_scope'?"),
        ("expired_key", "expired_key is always enforced: write `decision: expired_key`"),
        ("allow", "must be a reason that `mode: observe` lets go on"),
    ],
)
def test_only_what_may_be_observed_is_expected_to_be(place: Place, word: str, told: str) -> None:
    [problem] = place.problems(f"cases:\n  - {{request: GET /open, expect: {{would_deny: {word}}}}}\n")
    assert problem.startswith("policy.tests.yml:7:") and told in problem
