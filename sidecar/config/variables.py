"""`${VAR}` and `${VAR:-default}` in the text of a value; `$$` is a plain `$`."""

import re
from collections.abc import Mapping

_DOLLAR = re.compile(r"\$(?:(\$)|\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?)")


def replace_variables(text: str, environ: Mapping[str, str]) -> str:
    """`text` with each variable replaced once; what a variable holds is not looked into again.

    As in a shell, a default stands in for a variable that is unset or empty. Raises ValueError, without echoing
    any variable's value.
    """
    return _DOLLAR.sub(lambda found: _value(found, environ), text)


def _value(found: re.Match[str], environ: Mapping[str, str]) -> str:
    escaped, name, default = found.groups()
    if escaped:
        return "$"
    if name is None:
        raise ValueError(
            "'${' begins no variable: write ${NAME} or ${NAME:-default}, or $${ for the characters themselves"
        )
    value = environ.get(name)
    if not value and default is not None:
        return default
    if value is None:
        raise ValueError(f"the variable {name} is not set (write ${{{name}:-default}} to do without it)")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"the variable {name} is not UTF-8")
    return value
