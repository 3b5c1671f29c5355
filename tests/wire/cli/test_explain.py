"""`sidecar explain`: the gate's own decision, in words."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.main import main
from sidecar.core.apikey import KeyFormat

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: {store}
keys: {{environments: {{live: ex_}}, pass_through: [{{cookie: session}}]}}
scopes:
  read: Read
  write: {{includes: [read]}}
quotas:
  few: {{limit: 3, per: hour}}
routes:
- GET /items/**: {{scopes: [read], quotas: [few]}}
- POST /items/**: {{scopes: [write]}}
- "* /orgs/{{org}}/**": {{tenant: org}}
- GET /open: {{public: true}}
- GET /repos/{{repo}}: {{}}
- GET /items/hidden/**: {{deny: true}}
- GET /either: {{scopes: [read, write]}}
- "* /account/**": {{pass_through: only}}
identity: {{headers: {{X-Key: "{{key.id}}"}}}}
"""


class Asked:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "sidecar.yaml"
        self.file.write_text(CONFIG.format(store=f"sqlite://{folder}/keys.db"), encoding="utf-8")

    def run(self, *words: str, stdin: str = "") -> str:
        done = CliRunner().invoke(main, list(words), input=stdin)
        assert done.exit_code == 0, done.output
        return done.output

    def issue(self, *words: str) -> dict[str, str]:
        issued: dict[str, str] = json.loads(
            self.run("keys", "issue", "-c", str(self.file), "--name", "n", "--json", *words)
        )
        return issued

    def explain(self, method: str, target: str, key: str | None = None, stdin: str = "") -> str:
        named = () if key is None else ("--key", key)
        return self.run("explain", "-c", str(self.file), method, target, *named, stdin=stdin)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def test_an_allowed_request_is_explained_with_route_scopes_quota_and_headers(asked: Asked) -> None:
    key = asked.issue("--scope", "write")
    told = asked.explain("GET", "/items/7?page=2", key["id"])
    assert f"GET /items/**  ({asked.file}:11)" in told
    assert "scopes held read, write" in told
    assert "any of: read" in told
    assert "few: 3 of 3 left" in told
    assert f"X-Key: {key['id']}" in told
    assert told.splitlines()[-1].split() == ["decision", "allow"]


def test_the_upstream_of_a_route_is_shown_with_what_it_gets(asked: Asked) -> None:
    route = "- GET /pay/**: {public: true, upstream: billing, strip_prefix: /pay}\n"
    text = asked.file.read_text().replace("identity:", f"{route}identity:")
    asked.file.write_text(f"{text}upstreams: {{billing: http://127.0.0.1:2/v2}}\n")
    told = [line.split() for line in asked.explain("GET", "/pay/x?y").splitlines()]
    assert ["upstream", "billing,", "at", "127.0.0.1:2"] in told
    assert ["forwarded", "as", "/v2/x"] in told


def test_the_same_is_printed_as_json(asked: Asked) -> None:
    key = asked.issue("--scope", "read")
    words = ["explain", "-c", str(asked.file), "GET", "/items/7", "--key", key["id"], "--json"]
    told = json.loads(asked.run(*words))
    assert (told["decision"], told["route"], told["key_id"]) == ("allow", "GET /items/**", key["id"])
    assert told["quotas"][0]["remaining"] == 3


def test_explaining_takes_nothing_from_a_quota(asked: Asked) -> None:
    key = asked.issue("--scope", "read")
    for _ in range(5):
        assert "few: 3 of 3 left" in asked.explain("GET", "/items", key["id"])


def test_a_missing_scope_is_named(asked: Asked) -> None:
    told = asked.explain("POST", "/items", asked.issue("--scope", "read")["prefix"])
    assert "missing     write" in told
    assert "deny: insufficient_scope, answered with 403" in told


def test_the_key_itself_can_come_on_stdin_and_is_not_shown(asked: Asked) -> None:
    key = asked.issue("--scope", "read")
    told = asked.explain("GET", "/items", "-", stdin=key["key"] + "\n")
    assert "decision      allow" in told
    assert key["key"] not in told


def test_a_mistyped_key_on_stdin_is_an_invalid_key(asked: Asked) -> None:
    key = asked.issue("--scope", "read")["key"]
    told = asked.explain("GET", "/items", "-", stdin=key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert "deny: invalid_key, answered with 401" in told


def test_the_required_tenant_of_the_path_is_reported(asked: Asked) -> None:
    told = asked.explain("GET", "/orgs/other/x", asked.issue("--tenant", "acme")["id"])
    assert "{org} must be acme" in told
    assert "deny: wrong_tenant" in told


def test_a_revoked_key_is_reported_as_revoked(asked: Asked) -> None:
    key = asked.issue("--scope", "read")
    asked.run("keys", "revoke", key["id"], "-c", str(asked.file))
    assert "deny: revoked_key, answered with 401" in asked.explain("GET", "/items", key["id"])


def test_every_reading_of_an_ambiguous_path_is_shown(asked: Asked) -> None:
    told = asked.explain("GET", "/open/..%2fitems", asked.issue("--scope", "read")["id"])
    assert "or read as  /items" in told
    assert "deny: ambiguous_target, answered with 400" in told


def test_readings_that_are_not_text_are_shown_by_their_bytes(asked: Asked) -> None:
    told = asked.explain("GET", "/items/50%25cab%251b%5B1m", asked.issue("--scope", "read")["id"])
    assert "or read as  /items/50\\xcab\\x1b[1m" in told
    assert "\x1b" not in told
    assert told.splitlines()[-1].split() == ["decision", "allow"]


def test_an_encoded_slash_splits_or_not_as_configured(asked: Asked) -> None:
    key = asked.issue("--scope", "read")["id"]
    told = asked.explain("GET", "/repos/a%2Fb%20c", key)
    assert "or read as  /repos/a/b c" in told
    assert "deny: ambiguous_target, answered with 400" in told
    with asked.file.open("a", encoding="utf-8") as file:
        file.write("paths: {encoded_slash: keep}\n")
    told = asked.explain("GET", "/repos/a%2fb%20c", key)
    assert "path          /repos/a%2fb%20c\n" in told
    assert "or read as  /repos/a%2Fb c\n" in told
    assert told.splitlines()[-1].split() == ["decision", "allow"]
    assert "path          refused: ambiguous_target\n" in asked.explain("GET", "/repos/a%2F..%2Fb", key)


def test_without_a_key_the_public_route_is_open(asked: Asked) -> None:
    told = asked.explain("GET", "/open")
    assert "public: no key is needed" in told
    assert "allow, without a key of the sidecar" in told


def test_an_unknown_key_is_one_line_that_says_where_to_look(asked: Asked) -> None:
    asked.issue()
    done = CliRunner().invoke(main, ["explain", "-c", str(asked.file), "GET", "/items", "--key", "key_none"])
    assert done.exit_code == 1
    assert done.output == "Error: no key 'key_none'; see `sidecar keys list`\n"


def test_a_pepper_that_is_too_short_is_one_line(asked: Asked) -> None:
    key = asked.issue()
    words = ["explain", "-c", str(asked.file), "GET", "/items", "--key", key["id"]]
    done = CliRunner().invoke(main, words, env={"SIDECAR_PEPPER": "short"})
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "SIDECAR_PEPPER must have at least" in done.output


@pytest.mark.parametrize("letter", ["e", "%65", "%2565"])
def test_a_key_in_the_path_is_not_shown(asked: Asked, letter: str) -> None:
    key = asked.issue("--scope", "read")["key"]
    told = asked.explain("GET", "/items/" + key.replace("ex_", f"{letter}x_"))
    assert key[3:] not in told
    assert "GET /items/" in told


def cause(told: str) -> str:
    return told.partition("\ncause ")[2].strip()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ('"{key}"', "quotes stand around it"),
        ("\u201c{key}\u201d", "quotes stand around it"),
        ("Bearer {key}", "it begins with 'Bearer'"),
        ("Authorization: Bearer {key}", "it begins with 'Authorization'"),
        ("bearer:{key}", "something stands before the key (7 characters): send the key alone"),
        ("\ufeff{key}", "something stands before the key (1 character)"),
        ("{key}a", "something was added to it: it has 47 characters"),
        ("{cut}", "it is cut: it has 44 characters, and keys that begin with ex_ have 46"),
        ("{swapped}", "its checksum does not fit"),
        ("ex_" + "-" * 43, "its character 4 never occurs in keys"),
        ("EX_1", "upper and lower case count: keys begin with ex_"),
        ("sk_1", "it begins with none of the prefixes of this configuration: ex_"),
        (KeyFormat().make("ex_", lambda _: 7), "it is well-formed, but the store has no such key"),
        ("", "the key that was read is empty: it goes in `Authorization: Bearer KEY`"),
    ],
)
def test_the_cause_of_a_refused_key_is_named_and_no_part_of_it(asked: Asked, sent: str, told: str) -> None:
    key = asked.issue("--scope", "read")["key"]
    swapped = key[:-1] + ("a" if key[-1] != "a" else "b")
    found = asked.explain("GET", "/items", "-", stdin=sent.format(key=key, cut=key[:-2], swapped=swapped) + "\n")
    assert cause(found).startswith(told)
    assert key[12:30] not in found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("disable", "the key was disabled 20"),
        ("revoke", "the key was revoked 20"),
    ],
)
def test_the_cause_of_an_ended_key_is_when_it_ended(asked: Asked, change: str, told: str) -> None:
    key = asked.issue("--scope", "read")
    asked.run("keys", change, key["id"], "-c", str(asked.file))
    assert cause(asked.explain("GET", "/items", key["id"])).startswith(told)


@pytest.mark.parametrize(
    ("method", "target", "told"),
    [
        ("PATCH", "/items/1", "routes for this path take GET, HEAD, POST, not PATCH"),
        ("GET", "/itms/1", "GET /items/** ({file}:11): 'items' is expected in place 1 of the path"),
        ("GET", "/repos", "GET /repos/{{repo}} ({file}:15): the path ends before '{{repo}}'"),
        ("GET", "/repos/a/b", "GET /repos/{{repo}} ({file}:15): the path goes on after it ends"),
        ("GET", "/repos/a/", "GET /repos/{{repo}} ({file}:15): the path has one / too many at its end"),
        ("get", "/items", "the case of a method counts: write GET"),
        ("FETCH", "/items", "no route names this method"),
        ("POST", "/items", "the key lacks write: sidecar keys change {id} --scope read --scope write"),
        ("GET", "items", "a path begins with /"),
        ("GET", "*", "* is no path: the sidecar itself responds to `OPTIONS *` (204)"),
        ("GET", "/items/hidden/x", "the route denies every request (deny: true): {file}:16"),
        (
            "GET",
            "/account/me",
            "the route * /account/** ({file}:18) takes no keys, only credentials of keys.pass_through",
        ),
        ("GET", "/orgs/b/x", "the path names another tenant than that of the key, a"),
        ("GET", "/open/..%2fitems", "the path can be read in ways that lead to different routes"),
    ],
)
def test_the_cause_of_a_refused_request_is_named(asked: Asked, method: str, target: str, told: str) -> None:
    key = asked.issue("--scope", "read", "--tenant", "a")["id"]
    assert told.format(file=asked.file, id=key) in cause(asked.explain(method, target, key))


@pytest.mark.parametrize("sent", [True, False])
def test_the_cause_of_a_key_in_the_query_is_its_place(asked: Asked, sent: bool) -> None:
    key = asked.issue("--scope", "read")["key"]
    words = ("-", key) if sent else (None, "")
    told = cause(asked.explain("GET", f"/items?page=2&api_key={key}", *words))
    assert told == "a key stands in the query, where keys.from takes none: send it in a header"


@pytest.mark.parametrize(
    ("sent", "target", "told"),
    [
        (True, "/items?k={key}", "two keys were sent, one of them in the query: send one"),
        (False, "/items?k={key}x", "something was added to it: it has 47 characters"),
        (False, "/items", "no key was sent: it goes in `X-Api-Key: KEY` or the query, as k=KEY"),
    ],
)
def test_where_the_query_takes_keys_the_cause_is_in_the_key(asked: Asked, sent: bool, target: str, told: str) -> None:
    text = asked.file.read_text(encoding="utf-8")
    asked.file.write_text(text.replace("keys: {", "keys: {from: [{header: X-Api-Key}, {query: k}], "), encoding="utf-8")
    first, second = (asked.issue("--scope", "read")["key"] for _ in range(2))
    words = ("-", first) if sent else (None, "")
    assert cause(asked.explain("GET", target.format(key=second), *words)).startswith(told)


def test_options_of_everything_is_answered_without_a_decision(asked: Asked) -> None:
    assert "decision      none is needed: answered with 204\n" in asked.explain("OPTIONS", "*")


def test_where_each_key_has_one_scope_another_one_takes_its_place(asked: Asked) -> None:
    text = asked.file.read_text(encoding="utf-8")
    asked.file.write_text(text.replace("keys: {", "keys: {scopes_per_key: 1, "), encoding="utf-8")
    key = asked.issue("--scope", "read")["id"]
    told = cause(asked.explain("POST", "/items", key))
    assert told == f"the key lacks write: sidecar keys change {key} --scope write"


def test_one_scope_is_suggested_if_any_one_is_enough(asked: Asked) -> None:
    key = asked.issue()["id"]
    told = f"the key lacks read or write: sidecar keys change {key} --scope read"
    assert cause(asked.explain("GET", "/either", key)) == told


def test_without_a_key_the_cause_says_where_to_put_it(asked: Asked) -> None:
    assert cause(asked.explain("GET", "/items")) == "no key was sent: it goes in `Authorization: Bearer KEY`"


def test_a_plaintext_as_an_argument_is_refused_without_being_repeated(asked: Asked) -> None:
    key = asked.issue("--scope", "read")["key"]
    for text in (key, f"'{key}'", f"Bearer {key}", f"{key}\n"):
        for words in (
            ["explain", "GET", "/items", "--key", text],
            ["audit", "--key", text],
            ["keys", "list", "--search", text],
            ["keys", "usage", text],
            ["keys", "show", "x", text],
            ["keys", text],
            [text],
        ):
            done = CliRunner().invoke(main, words, env={"SIDECAR_CONFIG": str(asked.file)})
            assert done.exit_code == 2
            assert key[12:20] not in done.output


def test_text_copied_along_with_a_key_or_id_does_not_hide_it(asked: Asked) -> None:
    key = asked.issue("--scope", "read")
    for text in (f'"{key["key"]}"', f"Bearer {key['key']}", f"  authorization: bearer '{key['key']}' "):
        assert key["id"] in asked.run("keys", "show", "-", "-c", str(asked.file), stdin=text + "\n")
    assert key["id"] in asked.run("keys", "show", f'"{key["id"]}" ', "-c", str(asked.file))
    assert "decision      allow" in asked.explain("GET", "/items", f"'{key['prefix']}'")
    for text in (f"{key['prefix']}…", f"{key['prefix']}..."):
        assert key["id"] in asked.run("keys", "show", text, "-c", str(asked.file))
