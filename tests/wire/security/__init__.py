"""The security list, item by item, against a real sidecar over raw sockets."""
