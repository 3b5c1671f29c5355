"""SQLite as the engine of a store: its connections, its schema, and what is specific to SQLite."""
