"""The ops listener: /livez /readyz /metrics."""
