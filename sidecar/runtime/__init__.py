"""A running process: starting, reloading, maintaining and stopping its parts."""
