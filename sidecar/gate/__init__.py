"""The gate: a request head in, a decision out."""
