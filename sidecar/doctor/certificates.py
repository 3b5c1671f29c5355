"""When a certificate ends. The standard library tells it only of certificates that it trusts."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sidecar.doctor.facts import CertificateSeen, Unseen

_EXPLICIT_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def certificate_of(path: str) -> CertificateSeen | Unseen:
    """The first certificate in a PEM file."""
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
        start, end = text.index(_BEGIN), text.index(_END)
        begins_at, ends_at = validity_of(ssl.PEM_cert_to_DER_cert(text[start : end + len(_END)]))
    except OSError as error:
        return Unseen(reason=f"{path}: {error.strerror}")
    except ValueError:
        return Unseen(reason=f"{path} holds no certificate that can be read")
    return CertificateSeen(path=path, begins_at=begins_at, ends_at=ends_at)


def validity_of(der: bytes) -> tuple[float, float]:
    """notBefore and notAfter of an X.509 certificate (RFC 5280 section 4.1) in Unix seconds. Raises ValueError."""
    _, certificate, _ = _element(der)
    _, rest, _ = _element(certificate)
    tag, _, after = _element(rest)
    rest = after if tag == _EXPLICIT_VERSION else rest
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    first_tag, first, rest = _element(validity)
    second_tag, second, _ = _element(rest)
    return _time(first_tag, first), _time(second_tag, second)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content, and what comes after (X.690 section 8.1). Raises ValueError."""
    if len(data) < 2:
        raise ValueError("not DER")
    start, length = 2, data[1]
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("not DER")
    return data[0], data[start : start + length], data[start + length :]


def _time(tag: int, text: bytes) -> float:
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("not a time")
    written = text.decode("ascii")
    if tag == _UTC_TIME:
        # Two digits are a year from 1950 to 2049 (RFC 5280 section 4.1.2.5.1).
        written = f"{'19' if written[:2] >= '50' else '20'}{written}"
    return datetime.strptime(written, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
