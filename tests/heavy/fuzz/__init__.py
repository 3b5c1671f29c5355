"""Random requests and answers through the real process."""
