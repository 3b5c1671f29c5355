"""Hostile requests and answers as files, replayed on every run. `case.py` tells how a file is read."""
