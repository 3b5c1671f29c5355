"""On the PYTHONPATH of a process: logs everything of it and its libraries to standard error, including debug level."""

import logging

logging.basicConfig(level=logging.DEBUG)
logging.getLogger("debugging").debug("on")
