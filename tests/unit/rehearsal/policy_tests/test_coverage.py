"""What no test reaches is listed, and nothing else."""

from tests.unit.rehearsal.policy_tests.conftest import Place

EVERYTHING = """\
cases:
  - GET /items as reader: allow
  - GET /items as idle: insufficient_scope
  - POST /items as writer: allow
  - POST /items as reader: insufficient_scope
  - GET /orgs/acme/x as reader: allow
  - GET /orgs/other/x as reader: wrong_tenant
  - GET /live/x as reader: allow
  - GET /live/x as tester: wrong_environment
  - GET /open: allow
  - GET /me as reader: allow
  - GET /items/hidden/x as reader: no_route
  - GET /items: missing_credential
  - GET /items as unknown: invalid_key
  - {request: GET /items as reader, times: 4, expect: quota_exceeded}
  - {request: GET /items, key: {scopes: [read], status: expired}, expect: expired_key}
  - {request: GET /items, key: {scopes: [read], status: disabled}, expect: disabled_key}
  - {request: GET /items, key: {scopes: [read], status: revoked}, expect: revoked_key}
  - {request: GET /items, key: {scopes: [read], status: retired}, expect: retired_key}
"""
IDLE = "  idle: {scopes: []}\n"


def test_tests_that_reach_everything_leave_nothing(place: Place) -> None:
    covered = place.coverage(IDLE + EVERYTHING)
    assert list(covered.gaps) == []
    assert (covered.percent, covered.reached) == (100.0, covered.total)


def test_removing_a_case_uncovers_only_what_it_alone_covered(place: Place) -> None:
    begin, *lines = EVERYTHING.splitlines()
    for gone, line in enumerate(lines):
        covered = place.coverage("\n".join([IDLE + begin, *lines[:gone], *lines[gone + 1 :], ""]))
        assert covered.gaps and covered.percent < 100, line


def test_a_gap_is_named_with_its_line(place: Place) -> None:
    covered = place.coverage("cases: [GET /items as unknown: invalid_key]")
    found = {(gap.kind, gap.name): (gap.missing, gap.where.rpartition(":")[2]) for gap in covered.gaps}
    lines = place.config.read_text(encoding="utf-8").splitlines()

    def line_of(text: str) -> str:
        return str(next(number for number, line in enumerate(lines, 1) if text in line))

    assert found["route", "GET /items/**"] == ("no test is let through", line_of("GET /items/**"))
    assert found["route", "GET /open"] == ("no test reaches it", line_of("GET /open"))
    assert found["scope", "write"] == ("no test is refused for the lack of it", line_of("  write:"))
    assert ("reason", "wrong_tenant") in found and ("reason", "invalid_key") not in found
    assert ("reason", "key_not_accepted") not in found, "no route of this configuration refuses all keys"


def test_an_observed_refusal_is_covered_as_a_refusal(place: Place) -> None:
    text = place.config.read_text(encoding="utf-8").replace("GET /items/**: {", "GET /items/**: {mode: observe, ")
    place.config.write_text(text, encoding="utf-8")
    covered = place.coverage(f"{IDLE}cases: [GET /items as idle: allow, GET /items: allow]\n")
    gaps = {(gap.kind, gap.name): gap.missing for gap in covered.gaps}
    assert gaps["route", "GET /items/**"] == "no test is let through"
    assert gaps["scope", "read"] == "no test is let through with it"
    assert not {("reason", "insufficient_scope"), ("reason", "missing_credential")} & gaps.keys()
