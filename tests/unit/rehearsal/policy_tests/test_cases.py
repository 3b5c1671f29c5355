"""The result of a case: the gate's decision, compared with the expectation."""

from base64 import b64encode

import pytest

from tests.unit.rehearsal.policy_tests.conftest import Place


def test_a_line_is_a_case(place: Place) -> None:
    text = """\
cases:
  - GET /items/1 as reader: allow
  - GET /items/1: missing_credential
  - POST /items/1 as reader: insufficient_scope
  - POST /items/1 as reader: deny
  - POST /items/1 as reader: 403
  - PATCH /items/1 as writer: no_route
  - GET /items/hidden/1 as writer: no_route
  - GET /orgs/other/x as reader: wrong_tenant
  - GET /live/x as tester: wrong_environment
  - get /open: method_not_allowed
  - GET /a/%ZZ as reader: bad_target
"""
    assert place.passes(text) == 11


def test_a_table_has_a_case_for_each_key_and_request(place: Place) -> None:
    text = """\
tables:
  - name: items
    keys: [none, reader, writer]
    requests:
      GET /items: [missing_credential, allow, allow]
      POST /items: [deny, 403, allow]
      GET /open: allow
"""
    assert place.passes(text) == 9


@pytest.mark.parametrize("wrong", ["unknown", "mistyped", "cut"])
def test_a_wrong_key_is_invalid(place: Place, wrong: str) -> None:
    assert place.passes(f"cases: [GET /items as {wrong}: invalid_key, GET /open as {wrong}: invalid_key]") == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("unknown", "it is well-formed, but"), ("mistyped", "its checksum does not fit"), ("cut", "it is cut: it has 47")],
)
def test_each_wrong_key_is_wrong_in_its_own_way(place: Place, wrong: str, told: str) -> None:
    [result] = place.run(f"cases: [GET /items as {wrong}: allow]")
    assert result.why[0].startswith(told)


def test_a_key_has_the_status_and_the_times_that_it_is_given(place: Place) -> None:
    text = """\
cases:
  - {request: GET /items, key: {scopes: [read], status: disabled}, expect: disabled_key}
  - {request: GET /items, key: {scopes: [read], status: revoked}, expect: revoked_key}
  - {request: GET /items, key: {scopes: [read], status: expired}, expect: expired_key}
  - {request: GET /items, key: {scopes: [read], status: retired}, expect: retired_key}
  - {request: GET /items, key: {scopes: [read], age: 400d}, expect: allow}
  - {request: GET /items, key: {scopes: [read], expires_in: 10m}, expect: allow}
  - {request: GET /items, key: {scopes: [read], expires_in: 10m}, after: 10m, expect: expired_key}
  - {request: GET /items, key: {scopes: [read], retires_in: 1h}, expect: {decision: allow, response: {with: [Sunset]}}}
  - {request: GET /items, key: {scopes: [read], retires_in: 1h}, after: 1h, expect: retired_key}
"""
    assert place.passes(text) == 9


def test_a_key_is_presented_with_the_cases_corruption(place: Place) -> None:
    text = """\
cases:
  - {request: GET /items, key: reader, headers: {Authorization: "Bearer {key}"}, expect: allow}
  - {request: GET /items, key: reader, headers: {Authorization: 'Bearer "{key}"'}, expect: invalid_key}
  - {request: GET /items, key: reader, headers: {Authorization: "Token {key}"}, expect: malformed_credential}
  - {request: GET /items, key: reader, headers: {Authorization: ["Bearer {key}", Bearer other]}, expect: 401}
  - {request: "GET /items?key={key}", key: reader, expect: deny}
"""
    assert place.passes(text) == 5


@pytest.mark.parametrize(
    ("source", "case"),
    [
        ("{header: X-Api-Key}", "GET /items as reader"),
        ("{cookie: api_key}", "GET /items as reader"),
        ("{query: api_key}", "GET /items?page=2 as reader"),
        ("{header: Authorization, scheme: Basic, as: password}", "GET /items as reader"),
        ("{query: api_key}", "GET /items?api_key={key} as reader"),
    ],
)
def test_a_key_is_sent_where_the_configuration_looks_and_is_never_shown(place: Place, source: str, case: str) -> None:
    config = place.config.read_text(encoding="utf-8").replace("{header: Authorization, scheme: Bearer}", source)
    place.config.write_text(config, encoding="utf-8")
    assert place.passes(f"cases: [{{request: '{case}', expect: allow}}]") == 1
    secret = place.read(f"cases: [{{request: '{case}', expect: deny}}]").keys[0].text
    for changed in (config, config.replace("  environments:", "  forward_credential: true\n  environments:")):
        place.config.write_text(changed, encoding="utf-8")
        expect = "{decision: deny, forwarded: {target: /x, headers: {X-Api-Key: x, Cookie: x, Authorization: x}}}"
        shown = place.run(f"cases: [{{request: '{case}', expect: {expect}}}]")
        told = repr([(result.differences, result.rules, result.why) for result in shown])
        assert secret not in told and b64encode(f":{secret}".encode()).decode() not in told


def test_the_response_to_a_head_request_has_no_body(place: Place) -> None:
    assert place.passes("cases: [HEAD /items: {status: 401, response: {body: ''}}]") == 1


def test_a_default_says_how_keys_are_sent(place: Place) -> None:
    text = """\
defaults: {headers: {Authorization: "Token {key}", X-Key: forged}}
tables: [{keys: [none, reader], requests: {GET /items: [missing_credential, malformed_credential]}}]
"""
    assert place.passes(text) == 2


def test_time_ends_where_rfc_3339_does(place: Place) -> None:
    text = """\
now: 2999-12-31T23:59:59Z
groups:
  - sequence: true
    cases:
      - {request: GET /me, key: {scopes: [read], expires_in: 36500d, retires_in: 36500d}, after: 36500d, expect: allow}
      - {request: GET /me as reader, after: 36500d, times: 4, expect: quota_exceeded}
"""
    assert place.passes(text) == 2


def test_a_key_that_was_made_elsewhere_has_the_text_that_it_is_given(place: Place) -> None:
    place.config.write_text(
        place.config.read_text(encoding="utf-8").replace(
            "  pass_through:", "  imported: [{prefix: old_}]\n  pass_through:"
        ),
        encoding="utf-8",
    )
    text = """\
cases:
  - {request: GET /items, key: {scopes: [read], secret: old_0123}, expect: allow}
  - {request: GET /items, headers: {Authorization: Bearer old_4567}, expect: invalid_key}
  - {request: GET /items, key: {scopes: [read], secret: none_of_ours}, expect: invalid_key}
"""
    assert place.passes(text) == 3


def test_the_services_request_is_compared(place: Place) -> None:
    text = """\
cases:
  - request: GET /live/x as writer
    headers: {X-Key: forged, Accept: "*/*"}
    expect:
      decision: allow
      route: "* /live/**"
      forwarded:
        upstream: billing
        target: /live/x
        headers: {x-key: key_writer, X-Plan: pro, Accept: "*/*"}
        with: [X-Request-Id]
        without: [Authorization]
  - GET /open: {forwarded: {upstream: default, without: [X-Key]}}
  - GET /me as reader: {decision: allow, status: 200}
"""
    assert place.passes(text) == 3


def test_the_clients_response_is_compared(place: Place) -> None:
    text = """\
cases:
  - GET /me as reader:
      status: 200
      response: {body: {id: key_reader, left: 2}, headers: {X-RateLimit-Limit: 3}, without: [WWW-Authenticate]}
  - GET /items:
      status: 401
      response: {headers: {Content-Type: application/problem+json, WWW-Authenticate: Bearer realm="api"}}
  - GET /items as reader:
      response: {headers: {X-RateLimit-Remaining: 2, Cache-Control: private}, with: [X-Request-Id]}
  - name: a preflight
    request: OPTIONS /items
    headers: {Origin: "https://app.example.com", Access-Control-Request-Method: GET}
    expect:
      decision: allow
      status: 204
      route: GET /items/**
      response: {headers: {Access-Control-Allow-Origin: "https://app.example.com"}}
  - name: another origin
    request: GET /open
    headers: {Origin: "https://evil.example.com"}
    expect: {decision: allow, response: {without: [Access-Control-Allow-Origin], headers: {Vary: Origin}}}
"""
    assert place.passes(text) == 5


def test_quotas_are_taken_and_used_up(place: Place) -> None:
    text = """\
cases:
  - POST /items as writer: {decision: allow, takes: {few: 1, many: 5}, remaining: {few: 29, many: 95}}
  - POST /items as reader: {decision: deny, takes: []}
  - GET /items as reader: {takes: [few], remaining: {few: 2}}
  - {request: GET /items as reader, times: 3, expect: allow}
  - {request: GET /items as reader, times: 4, expect: {decision: quota_exceeded, status: 429, takes: []}}
  - {request: GET /items as reader, used: {few: 2}, expect: {decision: allow, remaining: {few: 0}}}
  - {request: GET /items as reader, used: {few: 999}, expect: quota_exceeded}
  - {request: GET /items as reader, used: {few: 3}, after: 1h, expect: allow}
  - {request: GET /items as reader, used: {few: 3}, after: 10m, expect: quota_exceeded}
"""
    assert place.passes(text) == 9


def test_cases_of_a_sequence_share_state_and_all_others_start_fresh(place: Place) -> None:
    text = """\
groups:
  - name: one after the other
    sequence: true
    key: reader
    cases:
      - {request: GET /items, times: 3, expect: allow}
      - GET /items: quota_exceeded
      - GET /items as tester: allow
      - {request: GET /items, after: 30m, expect: quota_exceeded}
      - {request: GET /items, after: 30m, expect: allow}
  - name: each for itself
    key: reader
    cases:
      - {request: GET /items, times: 3, expect: allow}
      - GET /items: allow
"""
    assert place.passes(text) == 7


def test_wrong_keys_count_against_their_address(place: Place) -> None:
    text = """\
groups:
  - sequence: true
    cases:
      - {request: GET /items as unknown, times: 3, expect: invalid_key}
      - GET /items as mistyped: too_many_failures
      - {request: GET /items as unknown, peer: 203.0.113.9, expect: invalid_key}
      - {request: GET /items as unknown, after: 1m, expect: invalid_key}
cases:
  - GET /items as unknown: invalid_key
"""
    assert place.passes(text) == 5


def test_a_sequence_knows_no_key_that_only_cases_before_it_have_sent(place: Place) -> None:
    """An address that guesses for long is not even asked for the keys that it has, unless they are in memory."""
    text = """\
cases:
  - GET /items as reader: allow
groups:
  - sequence: true
    cases:
      - {request: GET /items as unknown, times: 400, expect: too_many_failures}
      - GET /items as reader: too_many_failures
  - sequence: true
    cases:
      - GET /items as reader: allow
      - {request: GET /items as unknown, times: 400, expect: too_many_failures}
      - GET /items as reader: allow
"""
    assert place.passes(text) == 6


def test_a_case_runs_at_its_own_time_regardless_of_earlier_cases(place: Place) -> None:
    text = """\
now: 2026-06-01T12:20:00Z
cases:
  - {request: POST /items as reader, after: 1h, expect: deny}
  - GET /items as reader: {response: {headers: {X-RateLimit-Reset: 1780318800}}}
"""
    assert place.passes(text) == 2


def test_all_differences_are_shown_without_the_key(place: Place) -> None:
    text = """\
cases:
  - GET /items as reader:
      decision: deny
      status: 403
      route: none
      takes: {few: 2}
      remaining: {few: 7}
      forwarded:
        target: /x
        headers: {Authorization: "Bearer {key}", X-Key: other}
        without: [X-Key]
        with: [X-Nothing]
  - GET /me as reader: {forwarded: {without: [X-Key]}, response: {body: {id: 1}}}
"""
    assert place.differences(text) == [
        ("decision", "deny", "allow"),
        ("status", "403", "(the upstream's)"),
        ("route", "none", "GET /items/**"),
        ("takes", '{"few": 2}', '{"few": 1}'),
        ("remaining few", "7", "2"),
        ("forwarded target", "/x", "/items"),
        ("forwarded Authorization", "Bearer {key}", "(absent)"),
        ("forwarded X-Key", "other", "key_reader"),
        ("forwarded X-Nothing", "(any value)", "(absent)"),
        ("forwarded X-Key", "(absent)", "key_reader"),
        ("body.id", "1", '"key_reader"'),
        ("body.left", "(absent)", "2"),
        ("forwarded", "to the upstream", "(not forwarded)"),
    ]


def test_true_is_not_one_in_a_body(place: Place) -> None:
    place.config.write_text(
        place.config.read_text(encoding="utf-8").replace('id: "{key.id}", left: "{quota.remaining}"', "ok: true"),
        encoding="utf-8",
    )
    assert place.differences("cases: [GET /me as reader: {response: {body: {ok: 1}}}]") == [("body.ok", "1", "true")]


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("GET /items as reader: deny", ["GET /items/**"]),
        ("GET /nowhere as reader: allow", ["routes:"]),
        ("POST /items as reader: allow", ["POST /items/**", "  write:"]),
        ("{request: GET /items as reader, times: 4, expect: allow}", ["GET /items/**", "  few:"]),
        ("{request: GET /items as unknown, times: 4, expect: allow}", ["GET /items/**", "  failures:"]),
    ],
)
def test_the_rules_that_decided_are_named_with_their_lines(place: Place, case: str, lines: list[str]) -> None:
    [result] = place.run(f"cases:\n  - {case}\n")
    config = place.config.read_text(encoding="utf-8").splitlines()
    assert result.case.where == f"{place.folder}/policy.tests.yml:7"
    decided = [config[int(rule.where.rpartition(":")[2]) - 1] for rule in result.rules]
    assert len(decided) == len(lines)
    assert all(part in line for part, line in zip(lines, decided, strict=True)), decided


def test_a_refusal_that_was_not_expected_says_why(place: Place) -> None:
    [result] = place.run("cases: [POST /items as reader: allow]")
    assert result.why == ["the key lacks write: sidecar keys change key_reader --scope read --scope write"]


def test_cases_are_selected_by_name_group_and_line(place: Place) -> None:
    text = """\
groups:
  - name: Items
    cases:
      - GET /items: deny
      - {name: open, request: GET /open, expect: allow}
"""
    found = {only: len(place.run(text, only=only)) for only in ("", "items", "OPEN", "tests.yml:9", "nothing")}
    assert found == {"": 2, "items": 2, "OPEN": 1, "tests.yml:9": 1, "nothing": 0}


def test_the_result_of_a_case_does_not_depend_on_those_before_it(place: Place) -> None:
    lines = [
        "  - {request: GET /items as reader, times: 4, expect: quota_exceeded}",
        "  - {request: GET /items as unknown, times: 5, expect: too_many_failures}",
        "  - {request: GET /items as reader, after: 400d, expect: allow}",
        "  - GET /items as reader: {decision: allow, remaining: {few: 2}}",
        "  - GET /items as unknown: invalid_key",
    ]
    for turn in range(len(lines)):
        assert place.passes("\n".join(["cases:", *lines[turn:], *lines[:turn], ""])) == 5


OBSERVED = """\
cases:
  - {request: GET /items as idle, expect: {decision: allow, would_deny: insufficient_scope, takes: [few]}}
  - {request: GET /items, expect: {would_deny: missing_credential, forwarded: {without: [X-Key]}}}
  - {request: GET /items as unknown, expect: {would_deny: invalid_key, forwarded: {without: [Authorization]}}}
  - {request: GET /items as reader, expect: {would_deny: none}}
  - {request: GET /items as reader, used: {few: 3}, expect: {decision: quota_exceeded}}
  - GET /items as idle: allow
"""
IDLE = "  idle: {scopes: []}\n"


def observing(place: Place) -> None:
    text = place.config.read_text(encoding="utf-8").replace("read: Read", "read: {mode: observe}")
    text = text.replace("GET /items/**: {", "GET /items/**: {mode: observe, ")
    place.config.write_text(text.replace("few: {limit: 3,", "few: {mode: enforce, limit: 3,"), encoding="utf-8")


def test_a_refusal_that_is_only_observed_is_expected_as_such(place: Place) -> None:
    observing(place)
    assert place.passes(IDLE + OBSERVED) == 6


def test_an_unexpected_observed_refusal_is_named_with_why_it_is_forwarded(place: Place) -> None:
    observing(place)
    cases = """\
cases:
  - GET /items as idle: insufficient_scope
  - {request: GET /items as idle, expect: {would_deny: none}}
  - {request: GET /items as reader, expect: {would_deny: insufficient_scope}}
  - {request: POST /items as idle, expect: {would_deny: insufficient_scope}}
"""
    first, *others = place.run(IDLE + cases)
    [difference] = first.differences
    assert difference == ("decision", "insufficient_scope", "allow, though it would deny: insufficient_scope")
    assert (first.got, first.would_deny) == ("allow", "insufficient_scope")
    assert [rule.text for rule in first.rules] == ["GET /items/**: read; counts few", "scope read"]
    assert first.why == [
        "the key lacks read: sidecar keys change key_idle --scope read",
        "it goes on all the same, because the mode of the route is observe",
    ]
    assert [one.differences for one in others] == [
        [("would deny", "none", "insufficient_scope")],
        [("would deny", "insufficient_scope", "none")],
        [("would deny", "insufficient_scope", "(refused: insufficient_scope)")],
    ]
