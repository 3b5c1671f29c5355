"""The OpenAPI 3.1 document, made from the table of operations and their schemas."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from http import HTTPStatus
from typing import Any, Final

import msgspec

from sidecar.admin.api.operations import ONE_KEY, B, NoBody, Operation, Operations, Q
from sidecar.admin.api.requests import (
    Matching,
)
from sidecar.admin.problems import PROBLEM_JSON, ProblemDetails

# The OpenAPI document as a page of HTML. The page loads nothing from other hosts.


STYLE: Final = "/static/page.css"


def page(document: Mapping[str, Any]) -> str:
    """The document as HTML without scripts."""
    info = document["info"]
    body = [
        "<p class='trail'><a href='/'>Overview</a></p>",
        f"<h1>{escape(info['title'])}</h1>",
        f"<p>{escape(info['description'])} <a href='/api/openapi.json'>The OpenAPI document</a>.</p>",
        "<p>Every request needs an admin token: <code>Authorization: Bearer …</code>. "
        "Errors are <code>application/problem+json</code>.</p>",
    ]
    for tag in document["tags"]:
        body.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    body += _operation_html(method, path, operation)
    body.append("<h2>Objects</h2>")
    for name, schema in document["components"]["schemas"].items():
        body += _schema(name, schema)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(info['title'])}</title><link rel='stylesheet' href='{STYLE}'></head>"
        f"<body class='docs'><main>{''.join(body)}</main></body></html>"
    )


def _operation_html(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f"<section id='{name}'><h3><code>{method.upper()} {escape(path)}</code></h3>"
    yield f"<p>{escape(operation['summary'])}</p>"
    if parameters := operation["parameters"]:
        rows = [(one["name"], one["in"], _type(one["schema"]), one.get("description", "")) for one in parameters]
        yield _table(("Parameter", "In", "Type", ""), rows)
    if "requestBody" in operation:
        yield f"<p>Body: {_reference(operation['requestBody'])}</p>"
    responses = sorted(operation["responses"].items())
    yield f"<p>Response: {_reference(responses[0][1])}</p>"
    yield _table(("Status", ""), [(status, response["description"]) for status, response in responses])
    yield "</section>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    yield f"<section id='{escape(name)}'><h3>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
    rows = [
        (field, _type(part), "required" if field in required else "", part.get("description", ""))
        for field, part in schema.get("properties", {}).items()
    ]
    yield _table(("Field", "Type", "", ""), rows)
    yield "</section>"


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in heading)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _reference(holder: Mapping[str, Any]) -> str:
    [content] = holder["content"].values()
    name = escape(_type(content["schema"]))
    return f"<a href='#{name}'>{name}</a>"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and "additionalProperties" in schema:
        return f"object of {_type(schema['additionalProperties'] or {})}"
    return str(schema.get("type", "anything"))


_REFS: Final = "#/components/schemas/{name}"
_EVERYWHERE: Final = (400, 401, 403, 421, 429, 503)
_WITH_BODY: Final = (408, 413, 415)
_RETRY: Final = {429, 503}
_TEXT: Final = {
    200: "Done.",
    201: "Done; the secret is returned only this once.",
    400: "The request is not valid; `errors` points to each invalid field.",
    401: "No valid admin token.",
    403: "The admin token does not allow this, or another site sent the request.",
    404: "There is no such key, or it belongs to another tenant.",
    408: "The body did not arrive in time.",
    409: "The key's state does not allow it.",
    412: "The key has changed and no longer matches If-Match.",
    413: "The body is larger than 1 MiB.",
    415: "The body is not application/json.",
    421: "The admin listener has no such host name.",
    422: "The Idempotency-Key was used for another request.",
    429: "Too many wrong admin tokens from this address.",
    503: "The key store is unavailable.",
}
_ID_STEP: Final = "{id}"
_ID: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": "Change the key only if it still has this entity tag.",
    "schema": {"type": "string"},
}
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A unique name for this request. If it is sent again within a day, the request is not carried out "
    "again: the response is the key that it issued, without its secret.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}


def document(operations: Operations, *, root: str, version: str) -> dict[str, Any]:
    """The OpenAPI document. root: prefix of the operations' paths."""
    types = {kind for one in operations for kind in (one.response, one.body)} - {NoBody} | {ProblemDetails}
    _, schemas = msgspec.json.schema_components(sorted(types, key=lambda kind: kind.__name__), ref_template=_REFS)
    for kind in (*types, Matching):
        schemas[kind.__name__].update(getattr(kind, "rules", {}))
    paths: dict[str, dict[str, Any]] = {}
    followers = [one.name for one in operations if one.path.startswith(ONE_KEY)]
    for one in operations:
        paths.setdefault(root + one.path, {})[one.method.lower()] = _operation(one, followers)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sidecar admin API",
            "version": version,
            "description": "Issue, change and monitor API keys.",
        },
        "security": [{"token": []}],
        "tags": [{"name": group} for group in dict.fromkeys(one.group for one in operations)],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "An admin token."}},
            "schemas": schemas,
        },
    }


def _operation(one: Operation[Q, B], followers: Sequence[str]) -> dict[str, Any]:
    """followers: names of the operations on one key, which responses with a key link to."""
    statuses = sorted({*_EVERYWHERE, *one.problems, *(_WITH_BODY if one.method != "GET" else ())})
    described: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "tags": [one.group],
        "parameters": [*_parameters(one)],
        "responses": {str(status): _response(one, status, followers) for status in one.statuses}
        | {str(status): _problem(one, status) for status in statuses},
    }
    if one.body is not NoBody:
        described["requestBody"] = {"required": one.body_required, "content": _content("application/json", one.body)}
    return described


def _parameters(one: Operation[Q, B]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [_ID] if _ID_STEP in one.path else []
    schema = msgspec.json.schema_components([one.query], ref_template=_REFS)[1][one.query.__name__]
    required = schema.get("required", ())
    for name, part in schema["properties"].items():
        parameters.append({"name": name, "in": "query", "required": name in required, "schema": part})
    if one.takes_if_match:
        parameters.append(_IF_MATCH)
    if one.takes_idempotency_key:
        parameters.append(_IDEMPOTENCY_KEY)
    return parameters


def _response(one: Operation[Q, B], status: int, followers: Sequence[str]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _TEXT[status], "content": _content("application/json", one.response)}
    if one.group == "Keys" and one.name not in ("listKeys", "changeKeys"):
        response["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "For If-Match."}}
    if one.key_at and status == one.statuses[0]:
        found = {"id": f"$response.body#{one.key_at}"}
        response["links"] = {name: {"operationId": name, "parameters": found} for name in followers}
    return response


def _problem(one: Operation[Q, B], status: int) -> dict[str, Any]:
    detail = one.unknown if status == HTTPStatus.NOT_FOUND and one.unknown else _TEXT[status]
    text = f"{HTTPStatus(status).phrase}. {detail}"
    problem: dict[str, Any] = {"description": text, "content": _content(PROBLEM_JSON, ProblemDetails)}
    if status in _RETRY:
        problem["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return problem


def _content(media_type: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REFS.format(name=kind.__name__)}}}
