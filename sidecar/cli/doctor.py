"""`sidecar doctor`."""

import asyncio
import json
import os

import click

from sidecar.cli.key_service import open_store
from sidecar.cli.options import config_option, load_or_exit, seconds
from sidecar.cli.output import findings_as_json, findings_as_text
from sidecar.doctor.report import Severity
from sidecar.doctor.run import Examination, examine
from sidecar.runtime.clock import SystemClock


@click.command("doctor")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--deep", is_flag=True, help="Verify the whole audit trail, however long it is.")
@click.option(
    "--grace", callback=seconds, metavar="TIME", help="Time that the platform leaves after SIGTERM, such as 30s."
)
@click.pass_context
def doctor_command(context: click.Context, config_path: str, as_json: bool, deep: bool, grace: float | None) -> None:
    """Check the installation and suggest fixes.

    Each finding says what was found, why it matters, and what to do.

    Run it where the sidecar runs, as the same user and with the same SIDECAR_* variables. It changes nothing and prints
    no secrets. It connects to the upstream, sends it HEAD /, tries its port on this host's other addresses, queries the
    ops listener, and measures the store's latency. Exits with 0 if nothing is worse than a warning, with 1 if there are
    problems, with 2 if the configuration is wrong.

    \b
    Example:
      sidecar doctor -c /etc/sidecar/sidecar.yaml
      sidecar doctor -c sidecar.yaml --json | jq '.findings[] | select(.severity != "ok")'
    """
    examination = Examination(
        config=load_or_exit(config_path, {}),
        environ=os.environ,
        clock=SystemClock(),
        open_store=open_store,
        grace_seconds=grace,
        deep=deep,
    )
    found = asyncio.run(examine(examination))
    text = (
        json.dumps(findings_as_json(config_path, found), indent=2) if as_json else findings_as_text(config_path, found)
    )
    click.echo(text)
    if any(one.finding.severity is Severity.PROBLEM for one in found):
        context.exit(1)
