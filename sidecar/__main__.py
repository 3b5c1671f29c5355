"""`python -m sidecar` runs the command `sidecar`.

A file of its own: Python looks for this name.
"""

from sidecar.cli.main import main

if __name__ == "__main__":
    main(prog_name="sidecar")
