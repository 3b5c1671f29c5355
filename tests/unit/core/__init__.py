"""Behaviour of the pure rules."""
