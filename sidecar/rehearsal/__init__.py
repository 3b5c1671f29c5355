"""What a policy would do with requests: those of a test, a recorded log, or an OpenAPI document."""
