"""What the configuration asks of a key."""

from collections.abc import Sequence

from sidecar.config.settings import Config
from sidecar.core.apikey import KeyFormat
from sidecar.keys.validation import KeyRules


def key_format(config: Config) -> KeyFormat:
    """Raises ValueError where the lengths do not go together."""
    return KeyFormat(length=config.keys.length, checksum_length=config.keys.checksum_length)


def key_rules(config: Config) -> KeyRules:
    """Raises ValueError where the settings of keys do not go together."""
    return KeyRules(
        format=key_format(config),
        environments=config.keys.environments,
        prefix_length=config.keys.prefix_length,
        default_scopes=config.keys.default_scopes,
        catalogue=config.catalogue,
        plans=config.plans,
        quotas=config.quotas,
    )


def key_prefixes(config: Config) -> Sequence[str]:
    """What keys begin with, those made elsewhere too; an empty one where they begin with anything."""
    return (*config.keys.environments.values(), *(keys.prefix for keys in config.keys.imported))
