"""The URL of a key store: a file of SQLite, or a file of records."""

import os
from typing import Final

_PATHS: Final = "must be sqlite:///absolute/path, sqlite:relative/path or file:///absolute/path"
_USAGE: Final = "must be sqlite:///absolute/path or sqlite:relative/path: only SQLite keeps what a file cannot"


def parse_store(text: str) -> str:
    """`sqlite:///absolute/path` or `file:///absolute/path`; a relative path starts at the working directory."""
    if text.startswith(("postgresql:", "postgres:")):
        raise ValueError("is not supported yet: use sqlite:///path")
    scheme, _, path = text.partition(":")
    if scheme not in ("sqlite", "file") or not path or path.endswith(("/", ":memory:")):
        raise ValueError(_PATHS)
    if any(char in path for char in "?#\0"):
        raise ValueError("must be a path alone, without '?' or '#'")
    if path.startswith("//") and not path.startswith("///"):
        raise ValueError(f"{_PATHS}; two slashes would name a host")
    if not path.startswith("/"):
        path = os.path.abspath(path)
    return f"{scheme}:///{path.lstrip('/')}"


def parse_usage_store(text: str) -> str:
    """As `parse_store`, for a SQLite database."""
    if not text.startswith("sqlite:"):
        raise ValueError(_USAGE)
    return parse_store(text)


def is_sqlite(store: str) -> bool:
    """Whether a parsed store URL names a file of SQLite."""
    return store.startswith("sqlite:")


def sqlite_path(store: str) -> str:
    """The absolute path of the file that a parsed store URL names."""
    return "/" + store.removeprefix("sqlite:///")


def is_file(store: str) -> bool:
    """Whether a parsed store URL names a file of records."""
    return store.startswith("file:")


def file_path(store: str) -> str:
    """The absolute path of the file of records that a parsed store URL names."""
    return "/" + store.removeprefix("file:///")
