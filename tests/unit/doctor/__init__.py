"""Checks of made-up facts."""
