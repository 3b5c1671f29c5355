"""Programs that tests need and the machine may lack."""

import os
import shutil

import pytest


def needed(program: str, *, better: str = "") -> str:
    """Its path, or that of a `better` one where that is installed.

    Where it is missing the test is skipped; with CI=true it fails, so that the gate cannot lose it.
    """
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    for name in filter(None, (better, program)):
        found = shutil.which(name, path=places)
        if found is not None:
            return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is not installed, and CI=true says that nothing may be skipped")
    pytest.skip(f"{program} is not installed")
