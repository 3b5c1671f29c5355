"""Checks of an installation: probes collect the facts, and pure functions check them."""
