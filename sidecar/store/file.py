"""Keys in a file: read from YAML or JSON lines, and mirrored in SQLite, so that all else is as with any other store."""

import io
import os
from collections.abc import Iterator, Sequence
from typing import Final

from sidecar.config.errors import ConfigError
from sidecar.config.yaml_tree import Entries, Items, Node, Scalar, read_nodes
from sidecar.keys.transfer.fields import LineRules
from sidecar.keys.transfer.formats import BadLine, Entry, KeyFile, safe_name, unknown_field
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.keys.transfer.records import Record, records_of

# A file of records: a YAML list, or JSON lines.


MAX_BYTES: Final = 64 * 1024 * 1024
"""How large a file may be. YAML has a limit of its own (1 MiB), which is also that of a ConfigMap and a Secret."""
_TRUE: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHAPE: Final = "the file must be a YAML list of records, or JSON lines"


def read_file(path: str, rules: LineRules) -> Sequence[Record]:
    """The records of a file. Blocks. Raises OSError, and InvalidFile with every problem."""
    with open(path, "rb", opener=_without_waiting) as file:
        return read_records(file.read(MAX_BYTES + 1), rules)


def read_records(content: bytes, rules: LineRules) -> Sequence[Record]:
    """The records in the content of a file. Raises InvalidFile with every problem."""
    if len(content) > MAX_BYTES:
        raise InvalidFile([BadLine(line=1, problem=f"the file is larger than {MAX_BYTES >> 20} MiB")])
    if not content.strip():
        raise InvalidFile([BadLine(line=1, problem="the file is empty; if it shall have no keys, write []")])
    # A YAML list begins with another character.
    is_json_lines = content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    return records_of(KeyFile(io.BytesIO(content), "jsonl") if is_json_lines else _yaml_entries(content), rules)


def _without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe without a writer would block for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _yaml_entries(content: bytes) -> Iterator[Entry | BadLine]:
    try:
        root = read_nodes(content, "")
    except ConfigError as error:
        for problem in error.problems:
            yield BadLine(line=problem.line or 1, problem=problem.message)
        return
    if isinstance(root, Items):
        yield from map(_entry_of, root.items)
    else:
        yield BadLine(line=root.place.line, problem=_SHAPE)


def _entry_of(node: Node) -> Entry | BadLine:
    line = node.place.line
    if not isinstance(node, Entries):
        return BadLine(line=line, problem="is not a record: each item of the list maps fields to values")
    mappings = [node, *(value for _, value in node.entries if isinstance(value, Entries))]
    problems = [unknown_field(name.text for name, _ in node.entries), *map(_twice, mappings)]
    if any(problems):
        return BadLine(line=line, problem=next(filter(None, problems)))
    return Entry(line=line, fields={name.text: _value_of(name.text, value) for name, value in node.entries})


def _twice(node: Entries) -> str:
    names = [name.text for name, _ in node.entries]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    return "" if twice is None else f"{safe_name(twice)} occurs twice"


def _value_of(name: str, node: Node) -> object:
    """As JSON would have it. A text is as it is written, whatever YAML takes it for: a hash may look like a number.

    What does not fit becomes None within a list or a mapping, which no field may have there.
    """
    match node:
        case Scalar(tag="null"):
            return None
        case Scalar(text=text):
            return _TRUE.get(text.lower(), text) if name == "enabled" and node.tag == "bool" else text
        case Items(items=items):
            return [_text_of(item) for item in items]
        case Entries(entries=entries):
            value_of = _number_of if name == "quotas" else _text_of
            return {key.text: value_of(value) for key, value in entries}


def _text_of(node: Node) -> str | None:
    return node.text if isinstance(node, Scalar) and node.tag != "null" else None


def _number_of(node: Node) -> int | None:
    if not (isinstance(node, Scalar) and node.tag == "int" and node.text.isdecimal() and len(node.text) < _DIGITS):
        return None
    return int(node.text)


_DIGITS: Final = 20
