from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from sidecar.config.document import AccessLogSettings, Drain, Reload, UpstreamTls
from sidecar.config.fields import Address
from sidecar.config.load import load
from sidecar.core.errors import Reason
from sidecar.core.model import Quota, Source, StaticResponse, Subject, Window
from tests.unit.config.conftest import MINIMAL, Loading

EXAMPLE = Path(__file__).parents[3] / "config.example.yaml"

DESIGN = """\
listen: 0.0.0.0:8080
ops: 0.0.0.0:9090            # /livez /readyz /metrics
admin: 127.0.0.1:9091        # off unless SIDECAR_ADMIN_TOKEN (or admin.tokens) is set
upstream: http://127.0.0.1:8000
store: sqlite:///var/lib/sidecar/keys.db      # postgresql://… · file:///etc/sidecar/keys.yaml (hashes only, read-only)
limiter: memory                               # redis://…

keys:
  from: [{header: Authorization, scheme: Bearer}, {header: X-Api-Key}]
  environments: {live: hv_live_, test: hv_test_}   # prefix of the keys of each
  pass_through: [{header: Authorization, scheme: Bearer}, {cookie: session}]   # what is not a key of ours

scopes:
  streams:read: List and get streams
  streams:write: {includes: [streams:read]}

quotas:
  general:   {limit: 10000, per: hour, window: fixed, by: key}
  anonymous: {limit: 60, per: minute, by: address}
plans:
  pro: {general: 100000}

routes:
  - GET /v1/streams/**:         {scopes: [streams:read], quotas: [general]}
  - POST|DELETE /v1/streams/**: {scopes: [streams:write]}
  - GET /v1/status:             {public: true, quotas: [anonymous]}
  - "* /v1/projects/{project}/**": {tenant: project}

identity:
  headers: {X-Key-Id: "{key.id}", X-Tenant: "{key.tenant}", X-Scopes: "{key.scopes}"}
errors:      # body and status by reason; the default is application/problem+json (RFC 9457)
"""


def test_the_design_s_yaml_loads_as_written(loading: Loading) -> None:
    config = loading(DESIGN)
    assert config.listen == (Address(host="0.0.0.0", port=8080),)  # noqa: S104  # what the file says
    assert config.admin is None  # Without a token, nobody could use it.
    assert config.upstream.address == Address(host="127.0.0.1", port=8000)
    assert (config.store, config.limiter.url) == ("sqlite:///var/lib/sidecar/keys.db", "memory")
    assert config.keys.environments == {"live": "hv_live_", "test": "hv_test_"}
    assert config.keys.sources == (
        Source(kind="header", name="Authorization", scheme="Bearer"),
        Source(kind="header", name="X-Api-Key"),
    )
    assert config.keys.pass_through[1] == Source(kind="cookie", name="session")
    assert config.plans == {"pro": {"general": 100000}}
    assert [route.name for route in config.routes][1] == "POST|DELETE /v1/streams/**"
    assert config.routes[0].methods == {"GET", "HEAD"}
    assert config.routes[0].policy.any_scopes == {"streams:read"}
    assert [charge.quota.name for charge in config.routes[0].policy.charges] == ["general"]
    assert config.routes[2].policy.public
    assert config.routes[3].policy.tenant_param == "project"
    assert config.routes[3].where.endswith("sidecar.yaml:27")
    assert config.identity.headers["X-Scopes"] == "{key.scopes}"
    assert config.errors == {}


def test_the_example_loads_with_every_option() -> None:
    config = load(str(EXAMPLE), environ={})
    assert config.upstream.connect_timeout == 2.0
    assert config.upstream.max_connections == 256
    assert config.quotas["burst"] == Quota(
        name="burst", limit=50, period=1, window=Window.BUCKET, burst=100, by=(Subject.TENANT,)
    )
    assert config.quotas["anonymous"].only == "anonymous"
    assert config.keys.failures == Quota(name="failures", limit=300, period="minute", by=(Subject.ADDRESS,))
    analytics = config.routes[2].policy.charges
    assert [(charge.quota.name, charge.cost) for charge in analytics] == [("general", 1), ("analytics", 5)]
    assert config.routes[6].policy.environments == {"live"}
    assert not config.routes[6].policy.pass_through
    assert config.routes[7].policy.deny
    assert config.routes[8].policy.respond == StaticResponse(
        body={
            "key": "{key.id}",
            "scopes": "{key.scopes}",
            "expires_at": "{key.expires_at}",
        }
    )
    quota_exceeded = config.errors[Reason.QUOTA_EXCEEDED]
    assert quota_exceeded.status == 429
    assert quota_exceeded.headers == {"X-Support": "https://support.example.com/limits"}
    assert config.errors[Reason.EXPIRED_KEY] == config.errors[Reason.REVOKED_KEY]
    assert config.default_error is None


def test_what_is_left_out_has_its_default(loading: Loading) -> None:
    config = loading(MINIMAL)
    assert config.ops is None
    assert config.admin is None
    assert config.limiter.url == "memory"
    assert config.keys.sources == (Source(kind="header", name="Authorization", scheme="Bearer"),)
    assert (config.keys.length, config.keys.checksum_length) == (43, 6)
    assert config.routes == ()
    assert config.identity.request_id == "X-Request-Id"
    assert config.identity.strip == config.identity.keep == ()
    assert config.trusted_proxies == ()
    assert (config.realm, config.access_log) == ("api", AccessLogSettings())
    assert (config.reload, config.drain) == (Reload(watch=True, interval=2), Drain(delay=5, timeout=20))


def test_an_empty_section_is_one_left_out(loading: Loading) -> None:
    sections = ["ops", "keys", "scopes", "quotas", "routes", "unmatched", "paths", "identity", "errors", "realm"]
    sections += ["reload", "drain"]
    plain = loading(MINIMAL)
    emptied = loading(MINIMAL + "".join(f"{name}:\n" for name in sections))
    assert not emptied.catalogue.scopes
    assert replace(emptied, catalogue=plain.catalogue) == plain


def test_off_is_the_word_and_not_false(loading: Loading) -> None:
    config = loading(MINIMAL + "access_log: off\nkeys: {failures: off}\n")
    assert config.access_log is None
    assert config.keys.failures is None


def test_networks_and_unix_sockets_are_read(loading: Loading) -> None:
    addresses = "listen: unix:/run/in.sock\nupstream: unix:/run/app.sock\nstore: sqlite:/k.db\n"
    config = loading(addresses + 'trusted_proxies: [10.0.0.0/8, "::1"]\n')
    assert config.listen == (Address(path="/run/in.sock"),)
    assert config.upstream.address == Address(path="/run/app.sock")
    assert config.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))


def test_an_upstream_s_path_is_put_before_the_client_s(loading: Loading) -> None:
    text = MINIMAL.replace("http://127.0.0.1:8000", "https://api.internal/base/")
    upstream = loading(text).upstream
    assert (upstream.tls, upstream.address.port, upstream.authority) == (UpstreamTls(), 443, "api.internal")
    assert upstream.add_prefix == "/base"


def test_a_relative_store_becomes_absolute(loading: Loading) -> None:
    config = loading(MINIMAL.replace("sqlite:///tmp/keys.db", "sqlite:keys.db"))
    assert config.store == f"sqlite://{Path.cwd()}/keys.db"
