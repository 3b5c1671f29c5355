"""TLS contexts of both sides: TLS 1.2 or later, HTTP/1.1 as the only protocol."""

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

from sidecar.config.document import ListenerTls, UpstreamTls
from sidecar.config.reload import FileIdentity, identity_of
from sidecar.core.errors import UpstreamCause

_PROTOCOLS = ["http/1.1"]
_log = logging.getLogger(__name__)

_VERIFY_CAUSES: Mapping[int, UpstreamCause] = {
    2: UpstreamCause.TLS_UNKNOWN_ISSUER,
    9: UpstreamCause.TLS_NOT_YET_VALID,
    10: UpstreamCause.TLS_EXPIRED,
    18: UpstreamCause.TLS_UNKNOWN_ISSUER,
    19: UpstreamCause.TLS_UNKNOWN_ISSUER,
    20: UpstreamCause.TLS_UNKNOWN_ISSUER,
    21: UpstreamCause.TLS_UNKNOWN_ISSUER,
    62: UpstreamCause.TLS_HOSTNAME_MISMATCH,
    64: UpstreamCause.TLS_HOSTNAME_MISMATCH,
}
"""By OpenSSL's X509_V_ERR_* (openssl-verification-options(1)): no issuer, dates, self-signed, host name, IP address."""


class ListenerCertificates:
    """The data listener's context, reloaded when its files change. The constructor raises OSError (also SSLError)."""

    def __init__(self, settings: ListenerTls) -> None:
        self._settings = settings
        self._files = [name for name in (settings.certificate, settings.key, settings.client_ca) if name]
        self._identity = self._identify()
        self._context = listener_context(settings)

    def current(self) -> ssl.SSLContext:
        """The context for the next handshake. Unusable files keep the previous one in use, and are logged once."""
        identity = self._identify()
        if identity != self._identity:
            self._identity = identity
            try:
                self._context = listener_context(self._settings)
                _log.warning("sidecar: tls: reloaded %s", self._settings.certificate)
            except OSError as error:
                _log.warning("sidecar: tls: %s; the previous certificate stays in use", describe(error))
        return self._context

    def _identify(self) -> tuple[FileIdentity, ...]:
        """Taken before reading, so that a change during the read is noticed."""
        return tuple(identity_of(name) for name in self._files)


def listener_context(settings: ListenerTls) -> ssl.SSLContext:
    """Raises OSError (also SSLError)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_own(context, settings.certificate, settings.key)
    if settings.client_ca:
        _load_authority(context, settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return _restrained(context)


def upstream_context(settings: UpstreamTls) -> ssl.SSLContext:
    """Raises OSError (also SSLError)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.ca:
        _load_authority(context, settings.ca)
    else:
        context.load_default_certs()
    if settings.certificate:
        _load_own(context, settings.certificate, settings.key)
    return _restrained(context)


def describe(error: OSError) -> str:
    """One line, with the file name if the error has it."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def tls_cause(error: ssl.SSLError) -> UpstreamCause:
    """Which check of a handshake with the upstream failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CAUSES.get(error.verify_code, UpstreamCause.TLS_CERTIFICATE)
    reason = error.reason or ""
    # A certificate alert from the upstream is about ours, or asks for one (RFC 8446 section 6.2).
    about_ours = "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)
    return UpstreamCause.TLS_CLIENT_CERTIFICATE if about_ours else UpstreamCause.TLS_PROTOCOL


def _restrained(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_PROTOCOLS)
    return context


def _load_own(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for name in (certificate, key):
        _check_readable(name)
    try:
        # OpenSSL would ask for a password on the terminal.
        context.load_cert_chain(certificate, key, password="")  # none at all
    except ssl.SSLError as error:
        reason = error.reason or "not a PEM certificate with its key"
        raise OSError(0, f"cannot be used with {key} ({reason})", certificate) from error


def _load_authority(context: ssl.SSLContext, name: str) -> None:
    _check_readable(name)
    try:
        context.load_verify_locations(name)
    except ssl.SSLError as error:
        raise OSError(0, f"contains no certificate of an authority ({error.reason})", name) from error


def _check_readable(name: str) -> None:
    """Raises OSError with the file name, which OpenSSL's errors lack."""
    with Path(name).open("rb"):
        pass
