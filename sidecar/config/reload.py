"""What of a new configuration can take effect in a running process."""

from dataclasses import fields, replace

from sidecar.config.settings import AdminSettings, Config

_LIVE = frozenset(
    {
        "path",
        "sha256",
        "limits",
        "upstream",
        "keys",
        "catalogue",
        "quotas",
        "plans",
        "routes",
        "unmatched_charges",
        "case_sensitive",
        "identity",
        "trusted_proxies",
        "forwarded_header",
        "errors",
        "default_error",
        "rate_limit_headers",
        "realm",
        "reload",
        "drain",
        "usage",
    }
)
"""Everything else is bound, opened or started once. TLS begins and ends with a restart; its files may change."""


def without_restart(running: Config, wanted: Config) -> tuple[Config, tuple[str, ...]]:
    """`wanted` as far as it can be had at once, and the options that keep their value until a restart."""
    changed = (field.name for field in fields(Config) if getattr(running, field.name) != getattr(wanted, field.name))
    kept = tuple(name for name in changed if name not in _LIVE and not _is_live(name, running, wanted))
    mixed = {name: getattr(running, name) for name in kept} | {"admin": _admin(running.admin, wanted.admin)}
    return replace(wanted, **mixed), kept


def _is_live(name: str, running: Config, wanted: Config) -> bool:
    if name == "admin" and running.admin and wanted.admin:
        return running.admin.listen == wanted.admin.listen
    return name == "tls" and running.tls is not None and wanted.tls is not None


def _admin(running: AdminSettings | None, wanted: AdminSettings | None) -> AdminSettings | None:
    """Where it listens needs a restart; whom it lets in does not, least of all a token that is taken back."""
    if running is None:
        return None
    if wanted is None:
        return replace(running, tokens=())
    return replace(wanted, listen=running.listen)
