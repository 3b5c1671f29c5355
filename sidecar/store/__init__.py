"""Where keys, audit, usage and quota states are stored: the SQL, once, and the engines that run it."""
