"""The web page, in a real browser before a real sidecar."""
