"""Secrets of the environment: weighed here, and handed on only as their weight."""

import math
from collections.abc import Mapping

from sidecar.config.build.admin import VARIABLE
from sidecar.config.settings import Config
from sidecar.core.apikey import Hasher, peppers_from
from sidecar.doctor.facts import SecretsSeen

_PEPPER = "SIDECAR_PEPPER"


def secrets_seen(config: Config, environ: Mapping[str, str]) -> SecretsSeen:
    try:
        peppers, trouble = peppers_from(environ), ""
    except ValueError as error:
        peppers, trouble = (), str(error)
    previous = peppers[1:]
    return SecretsSeen(
        admin_token_bits=_weight(environ.get(VARIABLE, "")),
        pepper_bits=_weight(environ.get(_PEPPER, "")),
        pepper_problem=trouble,
        previous_algorithm=Hasher(previous).newest if previous else None,
        algorithms=Hasher(peppers, config.keys.imported).algorithms,
    )


def _weight(text: str) -> float | None:
    return bits(text) if text else None


def bits(text: str) -> float:
    """At most so many: its characters, each one of those that occur in it."""
    return len(text) * math.log2(len(set(text))) if text else 0.0
