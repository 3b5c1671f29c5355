"""Counting quotas: the port and its adapters."""
