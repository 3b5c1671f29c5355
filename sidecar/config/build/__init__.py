"""Sections of the configuration whose names refer to other sections."""
