"""Tables of requests and keys, with what the configuration is to do with them: `sidecar test`."""
