"""Hostile requests and responses as files, replayed on every run. `case.py` describes the file format."""
