"""Configurations of the proxies that are not ours: the same keys, the client told to the upstream, the key hidden."""

import json
from collections.abc import Iterable
from typing import Any

NGINX = """
user root; daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid;
error_log {folder}/nginx.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_max_body_size 0; client_body_buffer_size 256k; proxy_max_temp_file_size 0;
  proxy_buffers 16 32k; proxy_busy_buffers_size 128k;
  client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-f; uwsgi_temp_path {folder}/nginx-u; scgi_temp_path {folder}/nginx-s;
  map_hash_max_size 65536; map_hash_bucket_size 256;
  map $http_authorization $client {{
    default "";
{keys}
  }}
  limit_req_zone $client zone=clients:32m rate=1000000r/s;
  upstream service {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      if ($client = "") {{ return 401; }}
      limit_req zone=clients burst=1000000 nodelay;
      proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Client $client; proxy_set_header Authorization "";
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend clients
  bind 127.0.0.1:{port}
  stick-table type string len 32 size 200k expire 1m store http_req_rate(10s)
  http-request set-var(txn.client) http_auth_bearer,map_str({map})
  http-request deny deny_status 401 unless {{ var(txn.client) -m found }}
  http-request track-sc0 var(txn.client)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 100000000 }}
  http-request set-header X-Client %[var(txn.client)]
  http-request del-header Authorization
  default_backend service
backend service
  server upstream 127.0.0.1:{upstream}
"""

_TYPE = "type.googleapis.com/envoy.extensions."


def nginx_map(keys: Iterable[str]) -> str:
    return "\n".join(f'    "Bearer {key}" client-{number};' for number, key in enumerate(keys))


def haproxy_map(keys: Iterable[str]) -> str:
    return "".join(f"{key} client-{number}\n" for number, key in enumerate(keys))


def envoy(keys: Iterable[str], *, port: int, upstream: int) -> str:
    """A bootstrap with api_key_auth, local_ratelimit and the router, as JSON."""
    manager = {
        "@type": _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "route_config": {"virtual_hosts": [_everything()]},
        "http_filters": [_api_key_auth(keys), _local_ratelimit(), _router()],
    }
    listener = {
        "name": "clients",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    service = {
        "name": "service",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "service",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream)}}]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [service]}})


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _everything() -> dict[str, Any]:
    return {
        "name": "everything",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "service", "timeout": "0s"}}],
    }


def _api_key_auth(keys: Iterable[str]) -> dict[str, Any]:
    return {
        "name": "api_key_auth",
        "typed_config": {
            "@type": _TYPE + "filters.http.api_key_auth.v3.ApiKeyAuth",
            "credentials": [{"key": key, "client": f"client-{number}"} for number, key in enumerate(keys)],
            "key_sources": [{"header": "Authorization"}],
            "forwarding": {"header": "X-Client", "hide_credentials": True},
        },
    }


def _local_ratelimit() -> dict[str, Any]:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "name": "local_ratelimit",
        "typed_config": {
            "@type": _TYPE + "filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s"},
            "filter_enabled": always,
            "filter_enforced": always,
        },
    }


def _router() -> dict[str, Any]:
    return {"name": "router", "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"}}
