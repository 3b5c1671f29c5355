"""The gate with a real store, cache and limiter."""
