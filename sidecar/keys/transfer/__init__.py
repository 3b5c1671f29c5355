"""Keys in files: import and export."""
