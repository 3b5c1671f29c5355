"""OpenAPI documents: what they say, drafted as routes or compared with them."""
