"""YAML to one frozen Config; every error at once, each with its place."""
