"""Stored keys: the port, its adapters, the cache before them, and the verbs of a life."""
