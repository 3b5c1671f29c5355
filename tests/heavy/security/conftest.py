"""The site of the security list."""

from tests.wire.security.conftest import shared_keys, shared_sidecar, site

__all__ = ["shared_keys", "shared_sidecar", "site"]
