"""Each wrong snippet begins in line 4, after the three lines that every configuration needs."""

from collections.abc import Iterator

import msgspec
import pytest

from sidecar.config.document import Document
from sidecar.config.policy import Entry
from sidecar.config.store_url import parse_store, shown_store
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

WRONG = {
    "an unknown key": ("lisen: x:1", "4:1: lisen: unknown key (did you mean 'listen'?)"),
    "a nested unknown key": ("keys: {form: []}", "4:8: keys.form: unknown key (did you mean 'from'?)"),
    "a duplicate key": ("realm: a\nrealm: b", "5:1: realm: duplicate key, first in line 4"),
    "a list for a mapping": ("paths: []", "4:8: paths: must be a mapping, not a list"),
    "a tab as indentation": (
        "routes:\n\t- GET /a: {}",
        r"5:1: while scanning for the next token found character '\t' that cannot start any token: indent with spaces",
    ),
    "an unquoted parameter": (
        "routes: [{path: /v1/{org}, routes: [GET: {}]}]",
        "4:21: while parsing a flow mapping expected ',' or '}', but got '{': put a path with {…} in quotes here",
    ),
    "a word for a number or a word": (
        "quotas: {q: {limit: 1, per: day}}\nplans: {p: {q: Unlimited}}",
        "5:16: plans.p.q: must be a whole number, or unlimited",
    ),
    "a word for a mapping or a word": ("keys: {failures: none}", "4:18: keys.failures: must be off, or a mapping"),
    "a word for a duration or a word": (
        "keys: {max_age: never}",
        "keys.max_age: must be a number with its unit, such as 500ms, 2s, 15m, 24h or 90d, or off",
    ),
    "a query parameter without a name": ("keys: {from: [{query: ''}]}", "keys.from[0].query: must not be empty"),
    "an origin whose port no connection has": (
        "cors: {origins: ['https://a.test:65536']}",
        "4:18: cors.origins[0]: must have a port from 1 to 65535, or none",
    ),
    "a number for text": ("scopes: {a: 5}", "4:13: scopes.a: must be text: put it in quotes"),
    "a word for a number": ("keys: {length: long}", "4:16: keys.length: must be a whole number"),
    "an octal number": ("keys: {cache_size: 0777}", "4:20: keys.cache_size: must be a whole number in plain decimal"),
    "a missing field": ("quotas: {q: {limit: 1}}", "4:13: quotas.q.per: missing"),
    "a merge key": ("<<: {realm: a}", "4:1: <<: merge keys are not supported"),
    "an address without a port": ("ops: localhost", "4:6: ops: must be host:port"),
    "a fate of slashes": (
        "paths: {encoded_slash: kepe}",
        "paths.encoded_slash: must be keep or split (did you mean 'keep",
    ),
    "a bare port": ("ops: 9090", "(did you mean '0.0.0.0:9090'?)"),
    "a port out of range": ("ops: h:70000", "4:6: ops: must have a port from 0 to 65535"),
    "one address twice": ("ops: h:1\nadmin: h:1", "5:8: admin: is the address of ops already"),
    "a limiter of nobody": ("limiter: memcached://h", "4:10: limiter: must be memory, redis://host:port/0, rediss://"),
    "a limiter's other scheme": ("limiter: valkey://h", "(did you mean redis://?)"),
    "a limiter's query": ("limiter: redis://h?ssl_cert_reqs=none", "4:10: limiter: must hold no query or fragment"),
    "a limiter of two": ("limiter: redis://a,b", "limiter: must be one host; several are redis+sentinel://"),
    "a limiter's user alone": ("limiter: redis://me:@h", "limiter: has a user without a password"),
    "a limiter's port": ("limiter: redis://:secret@h:70000", "4:10: limiter: must be memory, redis://host:port/0"),
    "sentinels of nobody": ("limiter: redis+sentinel://h", "limiter: must name the server behind the sentinels"),
    "a cluster's database": ("limiter: redis+cluster://h/1", "limiter: must name no database"),
    "a limiter's relative socket": ("limiter: redis+unix://run/s", "limiter: must be redis+unix:///absolute/path"),
    "authorities of plain text": (
        "limiter: {url: redis://h, ca: /x.pem}",
        "ca: is for a rediss:// server alone",
    ),
    "an outage of nobody": (
        "limiter: {url: redis://h, outage: lokal}",
        "outage: must be closed, local or open",
    ),
    "a namespace with braces": ("limiter: {url: redis://h, namespace: '{a}'}", "limiter.namespace: "),
    "a source of nothing": ("keys: {from: [{}]}", "4:15: keys.from[0]: must have exactly one of"),
    "a source of two": ("keys: {from: [{header: X, query: y}]}", "keys.from[0]: must have exactly one of"),
    "a cookie's scheme": ("keys: {from: [{cookie: c, scheme: B}]}", "keys.from[0].scheme: only a header has"),
    "a header of two words": ("keys: {from: [{header: A B}]}", "keys.from[0].header: must be a name of RFC 9110"),
    "the origin of nobody": ('cors: {origins: ["null"]}', "4:18: cors.origins[0]: 'null' is the origin of any sandbox"),
    "an origin of nothing": ("cors: {origins: [null]}", "4:18: cors.origins[0]: must be"),
    "an origin with a path": (
        "cors: {origins: [https://A.test/]}",
        "cors.origins[0]: must be scheme://host or scheme://host:port, in lower case, without a path (did you mean "
        "'https://a.test'?)",
    ),
    "an origin with its usual port": ("cors: {origins: ['https://a.test:443']}", "write 'https://a.test'"),
    "origins that begin alike": ("cors: {origins: ['https://*.a.test']}", "cors.origins[0]: has a '*' in it"),
    "no origin": ("cors: {origins: []}", "4:17: cors.origins: must not be empty"),
    "origins that nobody named": ("cors: {headers: [X-A]}", "4:7: cors.origins: missing"),
    "cookies for every origin": (
        'cors: {origins: ["*"], credentials: true}',
        "4:18: cors.origins[0]: browsers reject '*' together with cookies (credentials: true)",
    ),
    "cookies and every header": (
        'cors: {origins: ["https://a.test"], expose: [X-A, "*"], credentials: true}',
        "4:51: cors.expose[1]: browsers reject '*'",
    ),
    "headers that begin alike": (
        'cors: {origins: ["*"], headers: [X-*]}',
        "4:34: cors.headers[0]: cannot contain '*': list each name, or write",
    ),
    "cookies for every origin of a route": (
        'routes: [{GET /a: {cors: {origins: ["*"], credentials: true}}}]',
        "routes[0].cors.origins[0]: browsers reject '*'",
    ),
    "a section that is only on": ("routes: [{GET /a: {cors: on}}]", "routes[0].cors: must be off, or a mapping with"),
    "a cache of nobody": ("routes: [{GET /a: {cache: public}}]", "routes[0].cache: must be private or shared"),
    "one source twice": ("keys: {from: [{header: X}, {header: x}]}", "keys.from[1]: is listed twice"),
    "no source": ("keys: {from: []}", "keys.from: must not be empty"),
    "a passing header that is stripped": (
        "keys: {pass_through: [{header: remote_user}]}",
        "4:32: keys.pass_through[0].header: is removed from every request: name it in identity.keep, too, and who sets",
    ),
    "a passing header of a family that is stripped": (
        "keys: {pass_through: [{header: X-Auth-Request-User}]}",
        "keys.pass_through[0].header: is removed from every request: name it in identity.keep, too, and who sets it in",
    ),
    "a passing header that the configuration strips": (
        "identity: {strip: [X-Mine]}\nkeys: {pass_through: [{header: X-Mine, scheme: A}]}",
        "5:32: keys.pass_through[0].header: is removed from every request: name it in identity.keep, too",
    ),
    "a passing header from nobody": (
        "keys: {pass_through: [{cookie: a}, {header: X-Forwarded-User}]}",
        "4:45: keys.pass_through[1].header: is passed on from trusted proxies only: name them in trusted_proxies",
    ),
    "a passing header that is not end-to-end": (
        "keys: {pass_through: [{header: Proxy-Authorization}]}",
        "keys.pass_through[0].header: never reaches the upstream as it came, because the sidecar removes or writes it",
    ),
    "a passing header that tells of the way": (
        "trusted_proxies: [10.0.0.1]\nkeys: {pass_through: [{header: X-Forwarded-For}]}",
        "keys.pass_through[0].header: never reaches the upstream as it came, because the sidecar removes or writes it",
    ),
    "a passing trace": ("keys: {pass_through: [{header: traceparent}]}", "never reaches the upstream as it came"),
    "a passing request id": ("keys: {pass_through: [{header: X_Request_Id}]}", "never reaches the upstream as it came"),
    "every cookie": ("keys: {pass_through: [{header: Cookie}]}", "holds every cookie: name the one that counts, as {c"),
    "the sidecar's own cookie": (
        "keys: {pass_through: [{cookie: sidecar_session}]}\n"
        f"admin: {{tokens: [{{name: a, hash: 'sha256:{'ab' * 32}'}}]}}",
        "keys.pass_through[0].cookie: is the sidecar's own, which never reaches the upstream: name another",
    ),
    "one passing header in two spellings": (
        "keys: {pass_through: [{header: X-A}, {header: x_a}]}",
        "4:47: keys.pass_through[1].header: is the same header as another one here",
    ),
    "a cookie where any text is a key": (
        'keys: {from: [{cookie: s}], pass_through: [{cookie: s}], imported: [{prefix: ""}]}',
        "is empty, which takes every credential that keys.pass_through should let pass: name a prefix",
    ),
    "a passing query": ("keys: {pass_through: [{query: q}]}", "keys.pass_through[0].query: query parameters always"),
    "an empty prefix": ('keys: {environments: {live: ""}}', "keys.environments.live: must be 1 to 64 of"),
    "a prefix of a prefix": ("keys: {environments: {a: k_, b: k_b_}}", "keys.environments.b: the prefix begins with"),
    "one prefix twice": ("keys: {environments: {a: k_, b: k_}}", "keys.environments.b: the prefix is that of 'a'"),
    "a short key": ("keys: {length: 27}", "4:16: keys.length: leaves 21 random characters"),
    "a short checksum": ("keys: {checksum: 3}", "4:18: keys.checksum: must be 0 (none) or from 4 to 8"),
    "a prefix that tells the key": ("keys: {prefix_length: 47}", "keys.prefix_length: must be at most"),
    "a half of what has none": ("keys: {from: [{header: A, as: username}]}", "from[0].as: only Basic has a username"),
    "an unknown default scope": ("scopes: {read: R}\nkeys: {default_scopes: [raed]}", "(did you mean 'read'?)"),
    "an unknown included scope": ("scopes: {w: {includes: [r]}}", "scopes.w.includes[0]: unknown scope 'r'"),
    "a scope named like a wildcard": ("scopes: {'a:*': x}", "4:10: scopes.a:*: is a wildcard"),
    "a scope of two words": ("scopes: {a b: x}", "4:10: scopes.a b: must be printable ASCII without spaces"),
    "a quota of nothing": ("quotas: {q: {limit: 0, per: day}}", "quotas.q.limit: must be at least 1"),
    "an unknown period": ("quotas: {q: {limit: 1, per: year}}", "quotas.q.per: must be minute, hour, day, week, month"),
    "a short period": ("quotas: {q: {limit: 1, per: 500ms}}", "quotas.q.per: must be whole seconds, at least 1s"),
    "a window that drifts": ("quotas: {q: {limit: 1, per: 7s}}", "quotas.q.per: a fixed window must divide a day"),
    "a burst of no bucket": ("quotas: {q: {limit: 1, per: day, burst: 2}}", "quotas.q.burst: only a bucket has"),
    "an unknown subject": ("quotas: {q: {limit: 1, per: day, by: adress}}", "(did you mean 'address'?)"),
    "a quota that never counts": ("quotas: {q: {limit: 1, per: day, only: anonymous}}", "quotas.q.only: an anonymous"),
    "a reserved quota": ("quotas: {failures: {limit: 1, per: day}}", "4:10: quotas.failures: is the name of"),
    "an unknown quota of a plan": ("quotas: {q: {limit: 1, per: day}}\nplans: {p: {r: 1}}", "5:13: plans.p.r: unknown"),
    "a plan's limit": ("quotas: {q: {limit: 1, per: day}}\nplans: {p: {q: 0}}", "plans.p.q: must be at least 1"),
    "an unmatched quota": ("unmatched: {quotas: [q]}", "4:22: unmatched.quotas[0]: unknown quota 'q'"),
    "an identity placeholder": ("identity: {headers: {X: '{key.nam}'}}", "{key.nam}' (did you mean 'key.name'?)"),
    "a framing header": ("identity: {headers: {transfer_encoding: x}}", "is a header that the sidecar itself handles"),
    "a host header": ("identity: {strip: [Host]}", "identity.strip[0]: is a header that the sidecar itself handles"),
    "a star inside": ("identity: {strip: [A, 'X-*-B']}", "4:23: identity.strip[1]: is neither a name nor a pattern"),
    "two stars": ("identity: {strip: ['X-**']}", "4:20: identity.strip[0]: is neither a name nor a pattern: a pattern"),
    "a star alone": ("identity: {strip: ['*']}", "4:20: identity.strip[0]: is neither a name nor a pattern"),
    "a pattern over framing": ("identity: {strip: [Content-*]}", "strip[0]: stands for content-length, too, which the"),
    "a pattern over forwarding": ("identity: {strip: [X-*]}", "4:20: identity.strip[0]: stands for x-forwarded-for, t"),
    "something kept from nobody": ("identity: {keep: [X-A]}", "4:12: identity.keep: lets trusted proxies set these: n"),
    "a kept identity": (
        "trusted_proxies: [10.0.0.1]\nidentity: {keep: [x-u*], headers: {X-User: a}}",
        "5:19: identity.keep[0]: lets 'X-User' pass, which is a header of identity.headers",
    ),
    "a kept request id": (
        "trusted_proxies: [10.0.0.1]\nidentity: {keep: [x_request_id]}",
        "identity.keep[0]: lets 'X-Request-Id' pass, which is the header of identity.request_id",
    ),
    "a kept credential": (
        "trusted_proxies: [10.0.0.1]\nidentity: {keep: [Auth*]}",
        "5:19: identity.keep[0]: lets 'Authorization' pass, which is where keys.from looks for a credential",
    ),
    "a kept cookie": (
        "trusted_proxies: [10.0.0.1]\nkeys: {pass_through: [{cookie: s}]}\nidentity: {keep: [cookie]}",
        "6:19: identity.keep[0]: lets 'Cookie' pass, which is where keys.pass_through looks for a credential",
    ),
    "a kept framing header": ("trusted_proxies: [10.0.0.1]\nidentity: {keep: [TE]}", "5:19: identity.keep[0]: is a h"),
    "a kept hop-by-hop header": ("trusted_proxies: [10.0.0.1]\nidentity: {keep: [Tra*]}", "keep[0]: stands for traile"),
    "a header over two lines": ('identity: {headers: {X: "a\\r\\nb"}}', "X: must be one line of printable ASCII"),
    "one header twice": ("identity: {headers: {X-A: a, x_a: b}}", "4:30: identity.headers.x_a: is the same header"),
    "an identity that the client may set": (
        "keys: {pass_through: [{header: X-User}]}\nidentity: {headers: {x-user: a}}",
        "5:22: identity.headers.x-user: is a header that keys.pass_through lets the client set",
    ),
    "a demand that no key can meet": ("keys: {require: [tennant]}", "4:18: keys.require[0]: must be tenant, environ"),
    "more scopes than there are": ("keys: {scopes_per_key: 1}", "4:24: keys.scopes_per_key: is more than there are: s"),
    "default scopes that are too many": (
        "scopes: {a: A, b: B}\nkeys: {scopes_per_key: 1, default_scopes: [a, b]}",
        "5:43: keys.default_scopes: must be 1, without wildcards, because of keys.scopes_per_key",
    ),
    "an alias that is an environment": (
        "keys: {environments: {live: {prefix: l_, aliases: [test]}, test: t_}}",
        "4:52: keys.environments.live.aliases[0]: 'test' is the name of an environment already",
    ),
    "an alias twice": (
        "keys: {environments: {live: {prefix: l_, aliases: [a]}, test: {prefix: t_, aliases: [a]}}}",
        "4:86: keys.environments.test.aliases[0]: 'a' is the name of an environment already",
    ),
    "scopes on a route for sessions only": (
        "keys: {pass_through: [{cookie: s}]}\nscopes: {a: A}\nroutes: [{GET /x: {pass_through: only, scopes: [a]}}]",
        "routes[0].scopes: `pass_through: only` takes no key: it cannot require anything of a key",
    ),
    "a response on a route for sessions only": (
        "keys: {pass_through: [{cookie: s}]}\nroutes: [{GET /x: {pass_through: only, respond: {a: b}}}]",
        "routes[0].respond: a route with `pass_through: only` is forwarded",
    ),
    "sessions only without sessions": (
        "routes: [{GET /x: {pass_through: only}}]",
        "4:34: routes[0].pass_through: nothing could pass: name the credentials in keys.pass_through",
    ),
    "a mistyped only": (
        "routes: [{GET /x: {pass_through: onyl}}]",
        "4:34: routes[0].pass_through: must be only (did you mean 'only'?)",
    ),
    "unmatched without sessions": ("unmatched: {pass_through: only}", "4:27: unmatched.pass_through: nothing could p"),
    "a session where nothing is unmatched": (
        'keys: {pass_through: [{cookie: s}]}\nroutes: [{"* /**": {}}]\nunmatched: {pass_through: only}',
        "6:27: unmatched.pass_through: is never reached: `* /**` matches every request",
    ),
    "everything public": (
        "unmatched: {public: true}",
        "4:21: unmatched.public: would open every path: name the public",
    ),
    "an unknown reason": (
        "errors: {quota_exceded: {}}",
        "unknown reason 'quota_exceded' (did you mean 'quota_exceeded'",
    ),
    "a reason twice": (
        "errors: {no_route: {}, internal|no_route: {}}",
        "the reason 'no_route' has an error response already",
    ),
    "a status that is no refusal": ("errors: {default: {status: 200}}", "errors.default.status: must be at least 400"),
    "an error placeholder": ("errors: {default: {body: {a: ['{nope}']}}}", "errors.default.body.a[0]: unknown placeh"),
    "a detail of a wrong key": (
        "errors: {invalid_key: {detail: true}}",
        "errors.invalid_key.detail: adds nothing for i",
    ),
    "a header template": ("errors: {default: {headers: {X: '{reason}'}}}", "errors.default.headers.X: unknown placeh"),
    "a number that JSON lacks": ("errors: {default: {body: .inf}}", "errors.default.body: is not a JSON number"),
    "a host in a network": ("trusted_proxies: [10.0.0.1/8]", "trusted_proxies[0]: names a host inside a network (did"),
    "an unknown word": ("access_log: jsn", "4:13: access_log: must be combined, json or off (did you mean 'json'?)"),
    "a quote in the realm": ("realm: 'a\"b'", "4:8: realm: must be printable ASCII without quotes"),
}


@pytest.mark.parametrize(("snippet", "expected"), WRONG.values(), ids=WRONG)
def test_one_error_is_one_line(problems: Complaining, snippet: str, expected: str) -> None:
    lines = problems(f"{MINIMAL}{snippet}\n")
    assert len(lines) == 1
    assert expected in lines[0]


UPSTREAMS = {
    "127.0.0.1:8000": "has no scheme: must be http://host:port, https://host:port or unix:/path (did you mean 'http",
    "ftp://h": "must be http://host:port",
    "http://": "must be http://host:port",
    "http://u:hunter2@h": "must not hold a user name or a password",
    "http://h/?a=hunter2": "must not hold a query or a fragment",
    "http://h:0": "must have a port from 1 to 65535",
    "http://[::zz]:80": "must be http://host:port",
    "http://h/a/../b": "must be empty or a path such as /api",
    "unix:run/x": "must be unix:/path",
    "unix:///run/x": "must be unix:/path, with one slash",
}


@pytest.mark.parametrize(("url", "expected"), UPSTREAMS.items())
def test_an_invalid_upstream_is_reported_without_echoing_a_secret(
    problems: Complaining, url: str, expected: str
) -> None:
    (line,) = problems(MINIMAL.replace("http://127.0.0.1:8000", f'"{url}"'))
    assert line.startswith(f"2:11: upstream: {expected}")
    assert "hunter2" not in line


STORES = [
    "sqlite://rel/path",
    "sqlite:",
    "sqlite::memory:",
    "x.db",
]


@pytest.mark.parametrize("store", STORES)
def test_an_unsupported_store_is_reported(problems: Complaining, store: str) -> None:
    (line,) = problems(MINIMAL.replace("sqlite:///tmp/keys.db", f"'{store}'"))
    assert line.startswith("3:8: store: ")
    assert "sqlite:///" in line
    assert "hunter2" not in line


def test_the_use_of_keys_in_a_file_is_kept_by_sqlite_only(problems: Complaining) -> None:
    (line,) = problems(MINIMAL.replace("sqlite:///tmp/keys.db", "{url: 'file:keys.yaml', usage: 'file:usage.yaml'}"))
    assert line.startswith("3:39: store.usage: must be sqlite:///absolute/path")


@pytest.mark.parametrize(("workers", "told"), [("2", True), ("1", False), ("auto", False)])
def test_keys_in_a_file_are_served_by_one_process(
    problems: Complaining, loading: Loading, workers: str, told: bool
) -> None:
    written = MINIMAL.replace("sqlite:///tmp/keys.db", "file:///tmp/keys.yaml") + f"workers: {workers}\n"
    if told:
        assert [line.partition(": ")[2] for line in problems(written)] == [
            "workers: must be 1 here, or be left out: keys in a file are served by one process"
        ]
    else:
        assert loading(written).store == "file:///tmp/keys.yaml"


def test_a_replica_is_another_database_of_postgresql(problems: Complaining, loading: Loading) -> None:
    wrong = MINIMAL.replace("sqlite:///tmp/keys.db", "{url: 'postgresql://h/db', replica: 'sqlite:keys.db'}")
    (line,) = problems(wrong)
    assert line.startswith("3:44: store.replica: must be postgresql://")
    right = MINIMAL.replace("sqlite:///tmp/keys.db", "{url: 'postgresql://h/db', replica: 'postgresql://s/db'}")
    assert loading(right).store_replica == "postgresql://s/db"
    assert loading(right, overrides={"store": "sqlite:keys.db"}).store_replica == ""


WRONG_URLS = [
    "postgresql:db",
    "postgresql://u:hunter2/7@h/db",
    "postgresql://u:hunter2@7@h/db",
    "postgresql://u:hunter2%zz@h/db",
    "postgresql://h/db?password=hunter2",
    "postgresql://h/db?ssl=hunter2",
    "postgresql://h/db?sslmode=hunter2",
    "postgresql://h/db#hunter2",
    "postgresql://u:hunter2@h:99999/db",
    "postgresql://u:hunter2@h:0/db",
    "postgresql://u:hunter2@h:port/db",
    "postgresql://u:hunter2@h:1:2/db",
    "postgresql://u:hunter2@::1/db",
    "postgresql://u:hunter2@a,,b/db",
    "postgresql://u:hunter2@h%00/db",
    "postgresql://u:hunter2@h/db%zz",
    "postgresql://u:hunter2@h/db?port=99999",
    "postgresql://u:hunter2@h/db?port=1,",
]


@pytest.mark.parametrize("store", WRONG_URLS)
def test_an_invalid_postgresql_url_is_reported_without_its_password(problems: Complaining, store: str) -> None:
    (line,) = problems(MINIMAL.replace("sqlite:///tmp/keys.db", f"'{store}'"))
    assert line.startswith("3:8: store: ")
    assert "hunter2" not in line


RIGHT_URLS = {
    "postgres://u:hunter2@db.internal:5432/keys?sslmode=verify-full": "postgresql://db.internal:5432/keys",
    "postgresql://u@h1:5432,h2:5432/keys?target_session_attrs=read-write": "postgresql://h1:5432,h2:5432/keys",
    "postgresql:///keys?host=/run/postgresql": "postgresql:///keys",
    "postgresql://u:%40%2F@[::1]:5432/keys": "postgresql://[::1]:5432/keys",
    "postgresql://u@%2Frun%2Fpostgresql:5433/keys": "postgresql://%2Frun%2Fpostgresql:5433/keys",
    "postgresql://u@h:/keys?port=5433": "postgresql://h:/keys",
    "postgresql:///keys?host=a,b&port=1,65535": "postgresql:///keys",
}


@pytest.mark.parametrize("store", RIGHT_URLS)
def test_a_url_of_postgresql_is_shown_without_user_password_and_options(store: str) -> None:
    assert shown_store(parse_store(store)) == RIGHT_URLS[store]


def entries_of(base: type[Entry]) -> Iterator[type[Entry]]:
    for entry in base.__subclasses__():
        yield entry
        yield from entries_of(entry)


def test_each_required_key_is_reported_with_what_to_write(problems: Complaining) -> None:
    assert Document in entries_of(Entry)
    for entry in entries_of(Entry):
        fields = msgspec.structs.fields(entry)
        assert set(entry.examples) == {field.encode_name for field in fields if field.required}, entry
    (line,) = problems(MINIMAL + "admin: {listen: '127.0.0.1:1', tokens: [{name: a}]}\n")
    assert line.endswith("missing: write `hash: sha256:…`, as `sidecar admin token` prints it")


def test_everything_is_reported_at_once_in_the_order_of_the_file(problems: Complaining) -> None:
    lines = problems("errors: {nope: {}}\npaths: 5\nroutes: [GET /x]\nlistn: h:1\n")
    places = [tuple(map(int, line.split(":")[:2])) for line in lines]
    assert places == sorted(places)
    said = "\n".join(lines)
    for part in ("upstream: missing", "store: missing", "unknown reason 'nope'", "paths: ", "routes[0]: ", "listn: "):
        assert part in said


def test_an_invalid_entry_does_not_invalidate_its_references(problems: Complaining) -> None:
    text = "scopes: {r: [x]}\nquotas: {q: {limit: 0, per: day}}\nroutes:\n- GET /x: {scopes: [r], quotas: [q]}\n"
    assert [line.split(" ")[1] for line in problems(MINIMAL + text)] == ["scopes.r:", "quotas.q.limit:"]


def test_a_wrong_item_is_reported_with_its_position(problems: Complaining) -> None:
    lines = problems(MINIMAL + "routes:\n- GET /x\n- GET /y: {scopes: [nope]}\n")
    assert lines[1].startswith("6:21: routes[1].scopes[0]: unknown scope 'nope'")


def test_a_name_cannot_break_the_line(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + '"a\\nb\\e[31m": 1\n')
    assert "\n" not in line
    assert "\x1b" not in line


PASTED = "ex_live_" + "aB3" * 14


@pytest.mark.parametrize(
    "snippet",
    [
        f"routes: [GET /x: {{scopes: [{PASTED}]}}]",
        f"routes: [GET /x: {{quotas: [{PASTED}]}}]",
        f"routes: [GET /x: {{environments: [{PASTED}]}}]",
        f"routes: ['GET /{PASTED}', 'GET /{PASTED}']",
        f"scopes: {{a: {{includes: [{PASTED}]}}}}",
        f"scopes: {{{PASTED}: 5}}",
        f"plans: {{free: {{{PASTED}: unlimited}}}}",
        f"plans: {{{PASTED}: {{q: unlimited}}}}",
        f"keys: {{default_plan: {PASTED}}}",
        f"keys: {{default_scopes: [{PASTED}]}}",
        f"errors: {{{PASTED}: {{status: 400}}}}",
        f"identity: {{headers: {{X-Id: '{{{PASTED}}}'}}}}",
        f"{PASTED}: 1",
        f"upstream: http://127.0.0.1:8000/{PASTED}?",
        f"realm: *{PASTED}",
        f"ops: h:1{PASTED}",
    ],
)
def test_what_may_be_a_key_is_shortened_in_every_problem(problems: Complaining, snippet: str) -> None:
    lines = problems(f"{MINIMAL}{snippet}\n")
    assert lines
    assert PASTED not in "\n".join(lines)


def test_a_warning_shortens_what_may_be_a_key(loading: Loading) -> None:
    warnings = loading(
        f"{MINIMAL}scopes: {{{PASTED}: unused}}\nroutes:\n- GET /{PASTED}/:id: {{public: true}}\n"
    ).warnings
    assert len(warnings) == 2
    assert PASTED not in "\n".join(map(str, warnings))
    assert "ex_live_aB3a…" in str(warnings[0])
