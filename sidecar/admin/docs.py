"""The OpenAPI document as a page to read, made here: nothing of it comes from another host."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

STYLE: Final = "/static/page.css"


def page(document: Mapping[str, Any]) -> str:
    """HTML without any script."""
    info = document["info"]
    body = [
        "<p class='trail'><a href='/'>Overview</a></p>",
        f"<h1>{escape(info['title'])}</h1>",
        f"<p>{escape(info['description'])} <a href='/api/openapi.json'>The OpenAPI document</a>.</p>",
        "<p>Every request needs an admin token: <code>Authorization: Bearer …</code>. "
        "Refusals are <code>application/problem+json</code>.</p>",
    ]
    for tag in document["tags"]:
        body.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    body += _operation(method, path, operation)
    body.append("<h2>Objects</h2>")
    for name, schema in document["components"]["schemas"].items():
        body += _schema(name, schema)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(info['title'])}</title><link rel='stylesheet' href='{STYLE}'></head>"
        f"<body class='docs'><main>{''.join(body)}</main></body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f"<section id='{name}'><h3><code>{method.upper()} {escape(path)}</code></h3>"
    yield f"<p>{escape(operation['summary'])}</p>"
    if parameters := operation["parameters"]:
        rows = [(one["name"], one["in"], _type(one["schema"]), one.get("description", "")) for one in parameters]
        yield _table(("Parameter", "In", "Type", ""), rows)
    if "requestBody" in operation:
        yield f"<p>Body: {_reference(operation['requestBody'])}</p>"
    answers = sorted(operation["responses"].items())
    yield f"<p>Answer: {_reference(answers[0][1])}</p>"
    yield _table(("Status", ""), [(status, answer["description"]) for status, answer in answers])
    yield "</section>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    needed = schema.get("required", ())
    yield f"<section id='{escape(name)}'><h3>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
    rows = [
        (field, _type(part), "needed" if field in needed else "", part.get("description", ""))
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
