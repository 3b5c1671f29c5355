"""The site of the wire tests."""

from tests.wire.security.conftest import shared_keys, shared_sidecar, site

__all__ = ["shared_keys", "shared_sidecar", "site"]
