"""What a policy would do to requests: those of a test, a recorded log, or an OpenAPI document."""
