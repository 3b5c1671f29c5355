"""`sidecar admin`: admin tokens."""

import json
import secrets
from textwrap import indent
from typing import Final, Literal

import click

from sidecar.cli.options import Misuse, OneOf
from sidecar.config.build.policy import token_entry
from sidecar.core.apikey import KeyFormat
from sidecar.core.model import EVERY

PREFIX: Final = "sidecar_admin_"


def new_token() -> str:
    """Return a new admin token. The configuration holds only its hash."""
    return KeyFormat().make(PREFIX, secrets.randbelow)


@click.group(name="admin")
def admin_group() -> None:
    """Manage access to the admin API and page.

    \b
    Example:
      sidecar admin token --name ops --rights write
    """


@admin_group.command()
@click.option("--name", required=True, help="Name of the token; the audit trail shows it as token:NAME.")
@click.option(
    "--rights", type=OneOf(["read", "write"]), default="read", show_default=True, help="What the token may do."
)
@click.option("--tenant", metavar="T", help="Limit the token to the keys of this tenant.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="S",
    help="With --tenant: a scope that the token may grant. Default: all.",
)
@click.option(
    "--plan", "plans", multiple=True, metavar="P", help="With --tenant: a plan that the token may assign. Default: all."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(
    name: str,
    rights: Literal["read", "write"],
    tenant: str | None,
    scopes: tuple[str, ...],
    plans: tuple[str, ...],
    as_json: bool,
) -> None:
    """Create an admin token and its entry for the configuration.

    The token is printed only once; the entry holds its hash. --scope and --plan can be given several times.

    \b
    Example:
      sidecar admin token --name ops --rights write
      sidecar admin token --name acme-portal --rights write --tenant acme --scope streams:read
    """
    if (scopes or plans) and tenant is None:
        raise Misuse("--scope and --plan limit a token of one tenant: add --tenant")
    if tenant == EVERY:
        raise Misuse(f"--tenant {EVERY} is not possible: for a token that administers every tenant, leave --tenant out")
    text = new_token()
    try:
        entry = token_entry(text, name=name, rights=rights, tenant=tenant, scopes=scopes, plans=plans)
    except ValueError as error:
        raise Misuse(str(error)) from error
    if as_json:
        named = {"name": name, "rights": rights, "tenant": tenant, "scopes": scopes, "plans": plans}
        click.echo(json.dumps({**named, "token": text, "entry": entry}, indent=2))
        return
    click.echo(f"\n    {text}\n")
    click.echo("This is the admin token. It is shown only once. Add its entry to the configuration:\n")
    click.echo(f"admin:\n  tokens:\n{indent(entry, '    ')}")
