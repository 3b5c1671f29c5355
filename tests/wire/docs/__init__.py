"""The commands in README and the guide work, in their order."""
