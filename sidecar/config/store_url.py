"""The URL of a key store: a file of SQLite, a database of PostgreSQL, or a file of records.

An invalid URL is never echoed, and a valid one is shown without its user and password.
"""

import os
import re
from typing import Final

_PATHS: Final = "must be sqlite:///absolute/path, sqlite:relative/path, file:///absolute/path"
_USAGE: Final = "must be sqlite:///absolute/path or sqlite:relative/path: only SQLite keeps what a file cannot"
_POSTGRESQL: Final = "postgresql://user@host:port/database"
_PORTS: Final = "has a port that is not between 1 and 65535"
_POSTGRESQL_URL: Final = re.compile(
    r"postgres(?:ql)?://(?:[^@:/?#\s]+(?::[^@:/?#\s]*)?@)?([^/?#@\s]*)(?:/[^/?#@\s]*)?(?:\?([^#@\s]*))?"
)
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._%-]+)(?::([0-9]*))?")
_NOT_ENCODED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
# Without `password`: a part of the URL that is shown ends before the question mark.
_OPTIONS: Final = {
    *("application_name", "dbname", "host", "passfile", "port", "target_session_attrs", "user"),
    *("sslcert", "sslcrl", "sslkey", "sslmode", "sslpassword", "sslrootcert"),
    *("ssl_max_protocol_version", "ssl_min_protocol_version"),
}

_VALUES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}


def parse_store(text: str) -> str:
    """`sqlite:///absolute/path` or `file:///…`, a relative path from the working directory; or a URL of PostgreSQL."""
    if text.startswith(("postgresql:", "postgres:")):
        return _postgresql(text)
    scheme, _, path = text.partition(":")
    if scheme not in ("sqlite", "file") or not path or path.endswith(("/", ":memory:")):
        raise ValueError(f"{_PATHS} or {_POSTGRESQL}")
    if any(char in path for char in "?#\0"):
        raise ValueError("must be a path alone, without '?' or '#'")
    if path.startswith("//") and not path.startswith("///"):
        raise ValueError(f"{_PATHS} or {_POSTGRESQL}; two slashes would name a host")
    if not path.startswith("/"):
        path = os.path.abspath(path)
    return f"{scheme}:///{path.lstrip('/')}"


def parse_usage_store(text: str) -> str:
    """As `parse_store`, for a SQLite database."""
    if not text.startswith("sqlite:"):
        raise ValueError(_USAGE)
    return parse_store(text)


def parse_replica(text: str) -> str:
    """As `parse_store`, for PostgreSQL."""
    if not text.startswith(("postgresql:", "postgres:")):
        raise ValueError(f"must be {_POSTGRESQL}")
    return _postgresql(text)


def _postgresql(text: str) -> str:
    """Parsed like libpq, without options that are not supported here."""
    found = _POSTGRESQL_URL.fullmatch(text)
    if found is None:
        raise ValueError(f"must be {_POSTGRESQL}; in a password, @ : / ? # and % must be percent-encoded")
    if _NOT_ENCODED.search(text):
        raise ValueError("must have %25 for a % itself, and no %00")
    _check_hosts(found[1])
    options = [option.partition("=") for option in (found[2] or "").split("&") if option]
    unknown = sorted({name for name, _, _ in options} - _OPTIONS)
    if unknown:
        raise ValueError(f"has the option {unknown[0]}, which is not one of {', '.join(sorted(_OPTIONS))}")
    for name, _, value in options:
        if value not in _VALUES.get(name, (value,)):
            raise ValueError(f"has another {name} than {', '.join(_VALUES[name])}")
        if name == "port" and not all(map(_is_port, value.split(","))):
            raise ValueError(_PORTS)
    return "postgresql" + text[text.index(":") :]


def _check_hosts(text: str) -> None:
    """None at all is a socket of this machine, or the option `host`."""
    for part in text.split(",") if text else ():
        found = _HOST.fullmatch(part)
        if found is None:
            raise ValueError(f"must be {_POSTGRESQL}: its host is host:port, [ipv6]:port, or a list of these")
        if found[1] and not _is_port(found[1]):
            raise ValueError(_PORTS)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536


def is_sqlite(store: str) -> bool:
    """Whether a parsed store URL names a file of SQLite."""
    return store.startswith("sqlite:")


def is_postgresql(store: str) -> bool:
    """Whether a parsed store URL names a database of PostgreSQL."""
    return store.startswith("postgresql:")


def shown_store(store: str) -> str:
    """A parsed store URL without user, password and options, for people and logs."""
    if not store.startswith("postgresql:"):
        return store
    scheme, _, rest = store.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def password_of(store: str) -> str:
    """The password in a parsed store URL, as written; empty for none."""
    user = store.partition("?")[0].partition("://")[2].rpartition("@")[0]
    return "" if is_sqlite(store) else user.partition(":")[2]


def sqlite_path(store: str) -> str:
    """The absolute path of the file that a parsed store URL names."""
    return "/" + store.removeprefix("sqlite:///")


def is_file(store: str) -> bool:
    """Whether a parsed store URL names a file of records."""
    return store.startswith("file:")


def file_path(store: str) -> str:
    """The absolute path of the file of records that a parsed store URL names."""
    return "/" + store.removeprefix("file:///")
