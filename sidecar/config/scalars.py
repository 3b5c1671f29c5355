"""One scalar of the YAML to one Python value. Each reader raises ValueError with what the value must be."""

import math
import re
from collections.abc import Mapping
from typing import TypeVar

from msgspec import inspect

from sidecar.config.errors import did_you_mean

Number = TypeVar("Number", int, float)

_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,17})")
_DECIMAL = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}")
_TRUTH: Mapping[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_scalar(text: str, tag: str, kind: inspect.Type) -> object:
    """`text` as a value of `kind`. The tag `var` is text that came out of a variable, and may be anything."""
    match kind:
        case inspect.IntType():
            return _bounded(_whole(text, tag), kind)
        case inspect.FloatType():
            return _bounded(_decimal(text, tag), kind)
        case inspect.BoolType():
            return _truth(text, tag)
        case inspect.LiteralType(values=values):
            return _one_of(text, [str(value) for value in values])
        case inspect.EnumType(cls=cls):
            return cls(_one_of(text, [str(member.value) for member in cls]))
        case _:
            return _text(text, tag)


def read_json(text: str, tag: str) -> object:
    """`text` as the JSON value that its tag stands for."""
    match tag:
        case "null":
            return None
        case "bool":
            return _truth(text, tag)
        case "int":
            return _whole(text, tag)
        case "float":
            return _number(text)
        case _:
            return text


def _text(text: str, tag: str) -> str:
    if tag not in ("str", "var", "value"):
        raise ValueError("must be text: put it in quotes")
    return text


def _whole(text: str, tag: str) -> int:
    if tag not in ("int", "var"):
        raise ValueError("must be a whole number")
    if not _WHOLE.fullmatch(text):
        # YAML 1.1 reads 010 as 8 and 1:30 as 90.
        raise ValueError("must be a whole number in plain decimal digits")
    return int(text.replace("_", ""))


def _decimal(text: str, tag: str) -> float:
    if tag not in ("int", "float", "var") or not _DECIMAL.fullmatch(text):
        raise ValueError("must be a number such as 0.1")
    return float(text)


def _bounded(number: Number, kind: inspect.IntType | inspect.FloatType) -> Number:
    if kind.ge is not None and number < kind.ge:
        raise ValueError(f"must be at least {kind.ge}")
    if kind.le is not None and number > kind.le:
        raise ValueError(f"must be at most {kind.le}")
    return number


def _truth(text: str, tag: str) -> bool:
    if tag not in ("bool", "var") or text.lower() not in _TRUTH:
        raise ValueError("must be true or false")
    return _TRUTH[text.lower()]


def _number(text: str) -> float:
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("is no JSON number: put it in quotes")
    return number


def _one_of(text: str, words: list[str]) -> str:
    if text not in words:
        choice = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
        raise ValueError(f"must be {choice}{did_you_mean(text, words)}")
    return text
