"""OpenAPI documents: reads them, drafts routes from them, and compares them with routes."""
