"""Valid but unlikely settings are warnings; plausible ones are not."""

import pytest

from tests.unit.config.conftest import MINIMAL, Loading

QUOTAS = "quotas: {general: {limit: 1, per: day}}\n"
SCOPES = "scopes: {read: R, write: {includes: [read]}, admin: {includes: [write]}}\n"

ODD = {
    "an Express parameter": ("routes: [GET /a/:id: {}]", "routes[0]: warning: ':id' matches these characters only"),
    "an Express parameter with an ending": (
        "routes: ['GET /a/:id.json': {}]",
        "routes[0]: warning: ':id.json' matches these characters only: write {id}",
    ),
    "a parameter of a template": (
        "routes: ['GET /a/${id}': {}]",
        "routes[0]: warning: '${id}' matches what begins with '$': write {id} for a parameter",
    ),
    "every method of a gateway": (
        "routes: [ANY /a: {}]",
        "routes[0]: warning: 'ANY' is a method of this name: write * for every method",
    ),
    "a status code in respond": (
        "routes: [GET /a: {respond: {statusCode: 301}}]",
        "routes[0].respond.statusCode: warning: `respond` is the JSON body",
    ),
    "a content type in respond": (
        "routes: [GET /a: {respond: {Content-Type: text/plain}}]",
        "routes[0].respond.Content-Type: warning: `respond` is the JSON body",
    ),
    "a status in respond": (
        "routes: [GET /a: {respond: {status: 301, x: 1}}]",
        "4:37: routes[0].respond.status: warning: `respond` is the JSON body of a 200, where 'status' is a member",
    ),
    "a body in respond": (
        "routes: [GET /a: {respond: {body: x}}]",
        "a whole response is `response: {status: …, headers: …, body: …}`",
    ),
    "a location in respond": ("routes: [GET /a: {respond: {Location: /b}}]", "routes[0].respond.Location: warning: "),
    "an unused scope": (
        "scopes: {read: R, write: W}\nroutes: [GET /a: {scopes: [read]}]",
        "4:19: scopes.write: warning: no route requires this scope",
    ),
    "an unused quota": (
        QUOTAS.replace("{general", "{x: {limit: 2, per: day}, general") + "routes: [GET /a: {quotas: [general]}]",
        "4:10: quotas.x: warning: no route counts this quota",
    ),
    "a plan of nothing": (
        QUOTAS + "plans: {pro: {}}\nroutes: [GET /a: {quotas: [general]}]",
        "5:9: plans.pro: warning: no route counts a quota of this plan",
    ),
    "scopes that include each other": (
        "scopes: {a: {includes: [b]}, b: {includes: [c]}, c: {includes: [b, a]}}\nroutes: [GET /a: {scopes: [a]}]",
        "scopes.a: warning: scopes include each other, and so are the same: a → b → c → a",
    ),
    "shares of a memory": (
        "limiter: {url: memory, replicas: 3}\n" + QUOTAS + "routes: [GET /a: {quotas: [general]}]",
        "4:24: limiter.replicas: warning: is only for a Redis",
    ),
    "a route without quotas": (
        QUOTAS + "routes: [GET /a: {quotas: [general]}, GET /b: {}]",
        "5:39: routes[1]: warning: `GET /b` has no quota, but other routes do",
    ),
    "a route of a group without quotas": (
        QUOTAS + "routes: [GET /a: {quotas: [general]}, {path: /b, routes: [GET: {}]}]",
        "routes[1].routes[0]: warning: `GET /b` has no quota, but other routes do",
    ),
    "a public route below a closed one": (
        "routes: [GET /a/**: {}, 'GET /a/{id}': {public: true}]",
        "routes[1].public: warning: `GET /a/{id}` needs no key, though `GET /a/**` around it does",
    ),
    "a public GET below a closed one, with its HEAD": (
        "routes: [GET /a/**: {}, GET /a/b: {public: true}, HEAD /a/b: {public: true}]",
        "needs no key, though `GET /a/**` around it does",
    ),
    "a public HEAD below a closed one": (
        "routes: [GET /a/**: {}, GET /a/b: {}, HEAD /a/b: {public: true}]",
        "`HEAD /a/b` needs no key, though `GET /a/**` around it does",
    ),
    "a key as all cookies": (
        "keys: {from: [{header: cookie}]}",
        "keys.from[0]: warning: a key that is a whole Cookie header is none that clients send: write `cookie: NAME`",
    ),
    "a key as the Host": ("keys: {from: [{header: Host}]}", "keys.from[0]: warning: clients and proxies write Host"),
    "a key for a proxy": (
        "keys: {from: [{header: Proxy-Authorization, scheme: Bearer}]}",
        "keys.from[0]: warning: clients and proxies write Proxy-Authorization for another purpose",
    ),
    "a key as an address": (
        "keys: {from: [{header: X-Forwarded-For}]}",
        "keys.from[0]: warning: clients and proxies write X-Forwarded-For for another purpose",
    ),
    "a key as Basic": (
        "keys: {from: [{header: Authorization, scheme: basic}]}\nroutes: [GET /a: {}]",
        "keys.from[0]: warning: clients send `username:password`",
    ),
}


@pytest.mark.parametrize(("text", "expected"), ODD.values(), ids=ODD)
def test_unlikely_settings_are_warnings(loading: Loading, text: str, expected: str) -> None:
    warnings = [str(warning) for warning in loading(f"{MINIMAL}{text}\n").warnings]
    assert len([warning for warning in warnings if expected in warning]) == 1, warnings


MEANT = {
    "a name that OData gives": "routes: [GET /a/$metadata: {}]",
    "a code of the service's own": "routes: [GET /a: {respond: {code: 5, status_text: x}}]",
    "a verb": "routes: ['POST /a/{id}:stop': {}, GET /a:b: {}]",
    "a key in a list of protocols": "keys: {from: [{header: Sec-WebSocket-Protocol}]}\nroutes: [GET /a: {}]",
    "a key as the user of Basic": "keys: {from: [{header: Authorization, scheme: Basic, as: username}]}",
    "a whole response": "routes: [GET /a: {response: {status: 301, headers: {Location: /b}, body: {status: 1}}}]",
    "a status of a key": "routes: [GET /a: {respond: {status: active}}]",
    "a scope that includes one in use": SCOPES + "routes: [GET /a: {scopes: [read]}]",
    "a scope that its wildcard includes": "scopes: {a:all: {includes: ['a:*']}}\nroutes: [GET /a: {scopes: [a:all]}]",
    "no quotas on purpose": QUOTAS + "routes: [GET /a: {quotas: [general]}, GET /b: {quotas: []}]",
    "no quotas of a group on purpose": (
        QUOTAS + "routes: [GET /a: {quotas: [general]}, {path: /b, quotas: [], routes: [GET: {}]}]"
    ),
    "quotas of defaults": QUOTAS + "defaults: {quotas: [general]}\nroutes: [GET /a: {}]",
    "a quota of what has no route": QUOTAS + "unmatched: {quotas: [general]}\nroutes: [GET /a: {}]",
    "a public route beside a closed one": "routes: [POST /a/**: {}, GET /a/b: {public: true}, GET /c/**: {}]",
    "HEAD with a public GET below a public one": (
        "routes: [GET /a/**: {public: true}, HEAD /a/**: {}, GET /a/b: {public: true}]"
    ),
    "nothing yet": QUOTAS + SCOPES,
}


@pytest.mark.parametrize("text", MEANT.values(), ids=MEANT)
def test_plausible_settings_are_not_warnings(loading: Loading, text: str) -> None:
    assert [str(warning) for warning in loading(f"{MINIMAL}{text}\n").warnings] == []
