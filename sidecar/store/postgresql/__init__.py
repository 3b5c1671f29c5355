"""PostgreSQL as the engine of a store: its connections, its schema, and what only PostgreSQL does in its own way."""
