"""Real processes and raw sockets for tests: an upstream that records, the sidecar itself, exact bytes between them."""
