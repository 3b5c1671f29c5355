"""Import and export of keys in files."""
