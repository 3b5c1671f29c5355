"""The store and what is in it."""

from tests.unit.keys.conftest import clock, key, lifecycle, path, rules, store, timings

__all__ = ["clock", "key", "lifecycle", "path", "rules", "store", "timings"]
