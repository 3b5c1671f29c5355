"""YAML to one frozen Config; all errors at once, each with its location."""
