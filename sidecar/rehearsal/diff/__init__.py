"""Compares two configurations by their effect on requests, not by their text."""
