"""Where keys, audit and usage are stored: the SQL and the connections."""
