"""SQLite as the engine of a store: its connections, its schema, and what only SQLite does in its own way."""
