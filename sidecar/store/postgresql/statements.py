"""Shared statements in PostgreSQL's spelling, and its errors in the store's terms."""

import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import asyncpg

from sidecar.keys.ports import StoreUnavailable
from sidecar.store.connection import DuplicateRow

# Placeholders are numbered, and a list of values is one array, so that a statement is prepared once for all lengths.


_PLACEHOLDER: Final = re.compile(r"\bIN \((\?(?:, \?)*)\)|\?")
_STATEMENTS: Final = 512
_LONGEST_KEPT: Final = 4_096
"""In characters. A longer statement contains a list of its own length, and is unlikely to be repeated."""

Sizes = tuple[int, ...] | None
"""How many values each placeholder stands for, 0 if it is not a list; None if there is no list at all."""


def translated(sql: str) -> tuple[str, Sizes]:
    """The statement with `$1` for `?` and `= ANY($1)` for `IN (?, ?)`."""
    return _translate(sql) if len(sql) > _LONGEST_KEPT else _remembered(sql)


def _translate(sql: str) -> tuple[str, Sizes]:
    sizes: list[int] = []

    def number(found: re.Match[str]) -> str:
        sizes.append(found[1].count("?") if found[1] else 0)
        return f"= ANY(${len(sizes)})" if found[1] else f"${len(sizes)}"

    text = _PLACEHOLDER.sub(number, sql)
    return text, tuple(sizes) if any(sizes) else None


_remembered = lru_cache(_STATEMENTS)(_translate)


def arguments(sizes: Sizes, values: Sequence[Any]) -> Sequence[Any]:
    """The values as the translated statement takes them."""
    if sizes is None:
        return storable(values)
    left = iter(storable(values))
    return [list(islice(left, size)) if size else next(left) for size in sizes]


def storable(values: Sequence[Any]) -> Sequence[Any]:
    """The values, without characters that PostgreSQL's text cannot hold: NUL and lone surrogates."""
    for value in values:
        if value.__class__ is str and (not value.isascii() or "\0" in value):
            return [_text(each) if each.__class__ is str else each for each in values]
    return values


def _text(value: str) -> str:
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


# What went wrong, and what to do about it. The server's own message is never passed on: it may quote a row.


class LostConnection(StoreUnavailable):
    """The connection is lost. The operation may succeed over another one."""


_SERVER: Final = "check that PostgreSQL runs there and accepts connections from this host"
_ENDED: Final = (
    "ended the connection: check that PostgreSQL runs there, and that it knows the authority of the client certificate "
    "(sslcert), if there is one"
)
_ADVICE: Final[Sequence[tuple[type[Exception] | tuple[type[Exception], ...], str]]] = (
    (
        asyncpg.InvalidPasswordError,
        "refuses the password: check the user and the password of the URL (or PGPASSWORD, PGPASSFILE)",
    ),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "refuses this user: check that the role exists, and that pg_hba.conf lets it in from this host (it may want "
        "TLS: sslmode=require, or a client certificate: sslcert and sslkey)",
    ),
    (asyncpg.InvalidCatalogNameError, "has no such database: create it (`createdb`), or correct the URL"),
    (
        asyncpg.TooManyConnectionsError,
        "has no connection left: raise max_connections, use fewer sidecars, or put PgBouncer (session mode) in front",
    ),
    (asyncpg.CannotConnectNowError, "is starting or shutting down: try again"),
    (
        asyncpg.InsufficientPrivilegeError,
        "does not let this role do that: use the administration role, or grant what deploy/postgresql/ says",
    ),
    (asyncpg.ReadOnlySQLTransactionError, "is read-only (a standby?): name the primary in the URL"),
    (asyncpg.DiskFullError, "cannot be written, its disk is full: free some space"),
    (asyncpg.LockNotAvailableError, "is being changed by another process for long: try again"),
    (asyncpg.QueryCanceledError, "did not answer in time: look for a busy server or missing statistics (ANALYZE)"),
    (asyncpg.DeadlockDetectedError, "was changed by another process at the same moment: try again"),
    (
        (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError),
        "does not have the tables of this version: run `sidecar store make`, or restore a backup",
    ),
    (
        (asyncpg.DuplicateTableError, asyncpg.DuplicateFunctionError, asyncpg.WrongObjectTypeError),
        "has a schema `sidecar` that is no key store: name another database, or rename that schema",
    ),
    (
        (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError),
        "is behind a pooler that mixes sessions: put PgBouncer in session mode",
    ),
    (
        asyncpg.ClientConfigurationError,
        "cannot be reached as its URL says: check its parameters; sslmode=verify-ca and verify-full need a readable "
        "sslrootcert",
    ),
    (asyncpg.TargetServerAttributeNotMatched, "has no such server among its hosts as target_session_attrs asks for"),
    (
        (FileNotFoundError, PermissionError),
        "cannot be reached: a file that its URL names is missing or unreadable: the socket in the folder `host`, or "
        "one of the TLS files sslrootcert, sslcert and sslkey",
    ),
    (socket.gaierror, "cannot be reached: the name of its host cannot be resolved: correct the URL, or look at DNS"),
    (
        ssl.SSLError,
        "cannot be reached safely: check the TLS files of the URL: sslrootcert, sslcert, and sslkey, which must fit it",
    ),
    (TimeoutError, f"did not answer in time: {_SERVER}"),
)
_CERTIFICATE: Final = "shows a certificate that "
_NOT_SIGNED: Final = f"{_CERTIFICATE}is not signed by an authority of sslrootcert: name the right file"
_OTHER_NAME: Final = f"{_CERTIFICATE}is for another name: write that name as the URL's host, or sslmode=verify-ca"
_UNVERIFIED: Final = {
    10: f"{_CERTIFICATE}has expired: renew it",
    **dict.fromkeys((18, 19, 20, 21), _NOT_SIGNED),
    23: f"{_CERTIFICATE}was revoked, as sslcrl says",
    **dict.fromkeys((62, 64), _OTHER_NAME),
}
"""By X509_V_ERR of OpenSSL (x509_vfy.h): expired, four of an unknown authority, revoked, host and address mismatch."""
_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    ConnectionError,
)


def unavailable(error: Exception, name: str) -> StoreUnavailable:
    """The exception in the store's terms: what happened, and what to do. `name`: the store, without its password."""
    code = getattr(error, "sqlstate", None) or type(error).__name__
    if type(error) is ConnectionError:  # Raised by asyncpg itself.
        advice = "refuses TLS: set it up there, or write another sslmode"
        return StoreUnavailable(f"the key store {name} {advice} [{code}]", cause=advice)
    if type(error) is asyncpg.InterfaceError:  # It was closed, or is about to be, after a question without an answer.
        advice = f"cannot be reached: {_SERVER}"
        return LostConnection(f"the key store {name} {advice} [{code}]", cause=advice)
    if isinstance(error, _LOST) and not isinstance(error, asyncpg.CannotConnectNowError):
        advice = _ENDED if isinstance(error, asyncpg.ConnectionDoesNotExistError) else f"cannot be reached: {_SERVER}"
        return LostConnection(f"the key store {name} {advice} [{code}]", cause=advice)
    advice = _advice(error)
    return StoreUnavailable(f"the key store {name} {advice} [{code}]", cause=advice)


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _UNVERIFIED:
        return _UNVERIFIED[error.verify_code]
    otherwise = f"cannot be reached: {_SERVER}" if isinstance(error, OSError) else "failed: see PostgreSQL's log"
    return next((advice for kind, advice in _ADVICE if isinstance(error, kind)), otherwise)


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn errors of asyncpg and the network into StoreUnavailable, and a broken constraint into DuplicateRow."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        raise DuplicateRow(str(unavailable(error, name))) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError) as error:
        raise unavailable(error, name) from error
