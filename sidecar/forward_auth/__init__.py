"""The forward-auth listener: a proxy asks whether a request may pass."""
