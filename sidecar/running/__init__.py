"""The parts of a running sidecar, which `app.py` puts together."""
