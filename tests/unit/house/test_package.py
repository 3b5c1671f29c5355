"""The package as it is installed: one version, and its types."""

import re
from importlib import metadata, resources
from pathlib import Path

from click.testing import CliRunner

import sidecar
from sidecar.cli.main import main
from sidecar.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[3]


def test_the_command_the_metric_and_the_metadata_show_the_version_of_the_package() -> None:
    shown = CliRunner().invoke(main, ["--version"])
    assert shown.output.strip().endswith(f"version {sidecar.__version__}")
    assert metadata.version("sidecar") == sidecar.__version__
    [line] = [
        line for line in Metrics().exposition("")[0].decode().splitlines() if line.startswith("sidecar_build_info{")
    ]
    assert f'version="{sidecar.__version__}"' in line


def test_the_version_is_written_in_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dynamic = \["version"\]$', project, re.MULTILINE)
    assert sidecar.__version__ not in project


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files("sidecar").joinpath("py.typed").is_file()
