"""What follows from the configuration for forward-auth, worked out once for as long as it is in force."""

from sidecar.config.settings import Config
from sidecar.core.client_address import TrustedProxies
from sidecar.core.errors import Reason
from sidecar.core.headers import fold
from sidecar.core.model import Allow, Headers
from sidecar.forward_auth.dialects import Original, objection


class Terms:
    """served: names of dialects. trusts: the peers whose questions are answered."""

    def __init__(self, config: Config) -> None:
        identity = (*config.identity.headers, config.identity.request_id)
        self.served = frozenset(config.decision.dialects if config.decision else ())
        self.trusts = TrustedProxies(config.trusted_proxies, b"").trusts
        self._identity = tuple(name.encode() for name in identity)
        self._strip = tuple(name.lower().encode() for name in config.identity.strip)
        self._credential = tuple(
            source.name.lower().encode() for source in config.keys.sources if source.kind == "header"
        )
        self._exact = frozenset(name.lower() for name in (*self._identity, *self._strip))
        self._folded = frozenset(map(fold, self._exact))

    def objection(self, asked: Original) -> Reason | None:
        """Why the gate need not be asked."""
        return Reason.BAD_HEADER if self._disguised(asked.headers) else objection(asked)

    def told(self, allow: Allow) -> Headers:
        """Every identity header, empty where nothing is known, so that the client's own is overwritten."""
        known = {name.lower(): value for name, value in allow.headers}
        return tuple((name, known.get(name.lower(), b"")) for name in self._identity)

    def not_forwarded(self, allow: Allow) -> bytes:
        """Names, comma-separated, of what the upstream is not to see: the key, and what is always stripped."""
        kept = {name.lower() for name, _ in allow.headers}
        return b",".join(name for name in (*self._credential, *self._strip) if name not in kept)

    def _disguised(self, headers: Headers) -> bool:
        """Whether a field passes itself off as one that the client may not send (`X_Auth_Subject`).

        The data listener strips those. A proxy in front overwrites the very name, and passes on the others.
        """
        return any((lower := name.lower()) not in self._exact and fold(lower) in self._folded for name, _ in headers)
