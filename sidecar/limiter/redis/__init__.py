"""Counting quotas in Redis or Valkey, for all sidecars that share it."""
