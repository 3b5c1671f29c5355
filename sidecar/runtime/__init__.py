"""A running process: what is started, reloaded, kept up and ended."""
