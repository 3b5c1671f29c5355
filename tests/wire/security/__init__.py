"""The security requirements against a real sidecar over raw sockets."""
