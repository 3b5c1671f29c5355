from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema import Draft202012Validator

from sidecar.config.schema import json_schema
from tests.unit.config.conftest import MINIMAL
from tests.unit.config.test_examples import DESIGN, EXAMPLE


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("text", [EXAMPLE.read_text(), DESIGN, MINIMAL], ids=["example", "design", "minimal"])
def test_a_good_file_fits_the_schema(validator: Draft202012Validator, text: str) -> None:
    validator.validate(yaml.safe_load(text))


GOOD: dict[str, Any] = {
    "an upstream as text": {"upstream": "https://h/base"},
    "an upstream from a variable": {"upstream": "${UPSTREAM}"},
    "an upstream with settings": {"upstream": {"url": "unix:/run/x", "connect_timeout": "500ms"}},
    "a scope as text": {"scopes": {"a": "A"}},
    "a scope with nothing": {"scopes": {"a": None}},
    "a scope as a mapping": {"scopes": {"a": {"includes": ["b"]}}},
    "a number from a variable": {"keys": {"cache_size": "${SIZE:-5}"}},
    "a truth from a variable": {"rate_limit_headers": {"x": "${X}"}},
    "failures off": {"keys": {"failures": "off"}},
    "errors left empty": {"errors": None},
    "an encoded slash that is kept": {"paths": {"encoded_slash": "keep"}},
    "one subject or several": {"quotas": {"q": {"limit": 1, "per": "30s", "by": ["key", "route"]}}},
    "a cost": {"routes": [{"GET /x": {"quotas": ["a", {"quota": "b", "cost": 2}]}}]},
    "a detail": {"errors": {"quota_exceeded": {"detail": True}}},
    "any body": {"errors": {"default": {"body": [1, {"a": None}]}}},
}


@pytest.mark.parametrize("document", GOOD.values(), ids=GOOD)
def test_shorthand_fits_the_schema(validator: Draft202012Validator, document: object) -> None:
    validator.validate(document)


BAD: dict[str, Any] = {
    "an unknown key": {"lisen": "h:1"},
    "two routes in one": {"routes": [{"GET /x": {}, "GET /y": {}}]},
    "a route without a policy": {"routes": ["GET /x"]},
    "an upstream without a scheme": {"upstream": "h:1"},
    "a duration without a unit": {"upstream": {"url": "http://h", "connect_timeout": "5"}},
    "a source of two": {"keys": {"from": [{"header": "X", "query": "y"}]}},
    "a quota of nothing": {"quotas": {"q": {"limit": 0, "per": "day"}}},
    "an unknown word": {"access_log": "xml"},
    "a status that is no refusal": {"errors": {"default": {"status": 200}}},
    "a header of two words": {"identity": {"headers": {"A B": "x"}}},
}


@pytest.mark.parametrize("document", BAD.values(), ids=BAD)
def test_what_the_loader_refuses_does_not_match_the_schema(validator: Draft202012Validator, document: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(document)


def test_every_default_in_the_schema_is_valid() -> None:
    schema = json_schema()
    found = 0
    for definition in schema["$defs"].values():
        for field in definition.get("properties", {}).values():
            if "default" in field:
                Draft202012Validator({**field, "$defs": schema["$defs"]}).validate(field["default"])
                found += 1
    assert found > 20
