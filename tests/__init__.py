"""Tests; see README.md.

What Python compiles is kept, as it is by default, also where the environment says otherwise: four workers and hundreds
of processes would each compile the same files, which is a tenth of a run.
"""

import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
