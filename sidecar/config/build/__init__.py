"""Sections of the configuration whose names are resolved across others."""
