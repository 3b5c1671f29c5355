"""TLS to PostgreSQL, with libpq's rules.

asyncpg itself would read certificates and keys from disk on the event loop.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

_VERIFIED: Final = ("verify-ca", "verify-full")
_ALWAYS: Final = ("require", *_VERIFIED)
_NOT_OURS: Final = ("PGSERVICE", "PGSSLNEGOTIATION")
"""Environment variables that asyncpg uses in addition to the URL."""
_ALPN: Final = "postgresql"
_VERSIONS: Final = {"min": ssl.TLSVersion.TLSv1_2, "max": ssl.TLSVersion.MAXIMUM_SUPPORTED}


def context_of(url: str, environ: Mapping[str, str]) -> ssl.SSLContext | None:
    """The context for a parsed store URL, made for each connection, because certificates are renewed. Blocks.

    None leaves it to asyncpg: below `sslmode=require` it reads no certificate authority, and reports errors itself.
    Raises OSError, also ssl.SSLError.
    """
    options = dict(parse_qsl(url.partition("?")[2]))

    def option(name: str) -> str:
        return options.get(name) or environ.get(f"PG{name.replace('_', '').upper()}", "")

    mode, root = option("sslmode"), option("sslrootcert") or _in_home("root.crt")
    if mode not in _ALWAYS or (mode in _VERIFIED and not root) or any(map(environ.get, _NOT_OURS)):
        return None
    try:
        versions = [_version(option(f"ssl_{end}_protocol_version"), usual) for end, usual in _VERSIONS.items()]
    except KeyError:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if root else ssl.CERT_NONE
    if root:
        context.load_verify_locations(cafile=root)
    if revoked := option("sslcrl") or _in_home("root.crl"):
        context.load_verify_locations(cafile=revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if certificate := option("sslcert") or _in_home("postgresql.crt"):
        key = option("sslkey") or _in_home("postgresql.key")
        context.load_cert_chain(certificate, keyfile=key or None, password=lambda: options.get("sslpassword", ""))
    context.minimum_version, context.maximum_version = versions
    context.set_alpn_protocols([_ALPN])
    return context


def _in_home(name: str) -> str:
    """The path of a file in libpq's folder; empty if there is none."""
    path = Path(os.path.expanduser("~")) / ".postgresql" / name
    return str(path) if path.exists() else ""


def _version(text: str, usual: ssl.TLSVersion) -> ssl.TLSVersion:
    """Raises KeyError for an unknown version."""
    return ssl.TLSVersion[text.replace(".", "_")] if text else usual
