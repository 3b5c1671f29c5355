"""API-key auth sidecar: a reverse proxy that verifies keys in front of a service you do not want to change."""

__version__ = "0.1.0"
