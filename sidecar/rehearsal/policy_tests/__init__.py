"""Tables of requests and keys with their expected outcome under a configuration: `sidecar test`."""
