"""What an answer tells a caller whose key has been replaced."""

from email.utils import formatdate

from sidecar.core.model import ApiKey, Headers


def ending_fields(key: ApiKey) -> Headers:
    """Since when the key should not be used (RFC 9745), and when it stops working (RFC 8594); none while it lasts."""
    if key.replaced_at is None or key.retires_at is None:
        return ()
    sunset = formatdate(key.retires_at // 1_000_000, usegmt=True)
    return ((b"Deprecation", b"@%d" % (key.replaced_at // 1_000_000)), (b"Sunset", sunset.encode()))
