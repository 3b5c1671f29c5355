"""Small OpenAPI documents with the features of large ones, and the configurations that are held against them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.rehearsal.openapi.coverage import Finding, compare
from sidecar.rehearsal.openapi.description import Description, description_of
from sidecar.rehearsal.openapi.draft import draft

SETTINGS = "listen: 127.0.0.1:0\nupstream: http://127.0.0.1:8000\nstore: sqlite:///tmp/keys.db\n"
OAUTH = {
    "oauth": {
        "type": "oauth2",
        "flows": {"clientCredentials": {"scopes": {"read": "Read", "write": "Write", "admin": "All"}}},
    },
    "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
}


def document(paths: Mapping[str, Any], **others: Any) -> Mapping[str, Any]:
    """OpenAPI 3.0 with the security schemes of OAUTH."""
    return {"openapi": "3.0.3", "paths": paths, "components": {"securitySchemes": OAUTH}, **others}


def described(written: Mapping[str, Any] | str, base_path: str | None = None) -> Description:
    text = written if isinstance(written, str) else json.dumps(written, indent=1)
    return description_of(text.encode(), "api.yaml", base_path)


def names(description: Description) -> Sequence[str]:
    return [operation.name for operation in description.operations]


def loaded(folder: Path, text: str) -> Config:
    file = folder / "sidecar.yaml"
    file.write_text(text, encoding="utf-8")
    return load(str(file), environ={})


def drafted(folder: Path, description: Description) -> tuple[str, Config, Sequence[Finding]]:
    """The draft of a document, loaded, and what the document and the draft say otherwise."""
    text = draft(description).text
    config = loaded(folder, text)
    return text, config, [finding for finding in compare(description, config) if finding.is_warning]


def policies(config: Config) -> Mapping[str, Any]:
    """Of each route: `public`, or its scopes; those that are all wanted in a set."""
    return {
        route.name: "public" if route.policy.public else set(route.policy.all_scopes) or sorted(route.policy.any_scopes)
        for route in config.routes
    }
