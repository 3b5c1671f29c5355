"""Quotas counted: the port and its adapters."""
