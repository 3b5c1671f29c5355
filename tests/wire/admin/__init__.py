"""The admin listener: its API and its page."""
