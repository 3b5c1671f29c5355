"""On the PYTHONPATH of a process: everything that it and its libraries log goes to standard error, debug level too."""

import logging

logging.basicConfig(level=logging.DEBUG)
logging.getLogger("debugging").debug("on")
