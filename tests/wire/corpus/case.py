r"""A case of the corpus, out of a file of this form:

    what: CL.TE, the classic
    status: 400
    ---
    POST /public/x HTTP/1.1\r\n
    Content-Length: 6\r\n
    \r\n

Fields above the line, exact bytes below it. There, line ends of the file are ignored; `\r` `\n` `\t` `\0` `\xHH` and
`\\` mean bytes, `<<Kr>>` for a key, and `<<3*ab>>` for `ababab`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([rnt0\\]))")
_REPEAT = re.compile(rb"<<(\d+)\*(.+?)>>", re.DOTALL)
_KEY = re.compile(rb"<<(K\w)>>")
_NAMED = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"\\": b"\\"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file. Fields that it does not have are empty."""

    name: str
    fields: Mapping[str, str]
    raw: bytes

    def numbers(self, field: str, default: str) -> set[int]:
        """The numbers, any of which is allowed."""
        return {int(word) for word in self.fields.get(field, default).split()}

    def bytes_of(self, field: str) -> bytes | None:
        return unescape(self.fields[field].encode("latin-1"), {}) if field in self.fields else None

    def sent(self, keys: Mapping[str, str]) -> bytes:
        return unescape(self.raw, keys)


def unescape(text: bytes, keys: Mapping[str, str]) -> bytes:
    with_keys = _KEY.sub(lambda found: keys[found[1].decode()].encode(), text)
    repeated = _REPEAT.sub(lambda found: int(found[1]) * found[2], with_keys.replace(b"\n", b""))
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else _NAMED[found[2]], repeated)


def load(folder: Path) -> list[Case]:
    return [_read(file) for file in sorted(folder.glob("*.http"))]


def _read(file: Path) -> Case:
    head, line, raw = file.read_bytes().partition(b"\n---\n")
    assert line, f"{file.name}: no line of three dashes"
    fields = dict(entry.split(": ", 1) for entry in head.decode("latin-1").splitlines())
    unknown = fields.keys() - {"what", "status", "upstream", "end", "body", "answers", "method", "reused", "close"}
    assert not unknown, f"{file.name}: {unknown}"
    return Case(name=file.stem, fields=fields, raw=raw)
