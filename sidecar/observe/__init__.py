"""What the operator sees: metrics and the access log."""
