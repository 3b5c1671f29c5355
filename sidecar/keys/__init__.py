"""API keys: the ports of their store, their lifecycle, rules, cache and audit."""
