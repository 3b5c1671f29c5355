"""`sidecar admin`: tokens for those who administer."""

import secrets
from textwrap import indent
from typing import Final, Literal

import click

from sidecar.cli.options import Misuse
from sidecar.config.build.admin import token_entry
from sidecar.core.apikey import KeyFormat
from sidecar.core.model import EVERY

PREFIX: Final = "sidecar_admin_"


def new_token() -> str:
    """An admin token, of which the configuration gets only the hash."""
    return KeyFormat().make(PREFIX, secrets.randbelow)


@click.group(name="admin")
def admin_group() -> None:
    """Look after who administers.

    \b
    Example:
      sidecar admin token --name ops --rights write
    """


@admin_group.command()
@click.option("--name", required=True, help="Whose token it is; the audit trail shows it as token:NAME.")
@click.option(
    "--rights", type=click.Choice(["read", "write"]), default="write", show_default=True, help="What it may do."
)
@click.option("--tenant", metavar="T", help="Reach the keys of this tenant, and no other's.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="S", help="With --tenant: may grant this. Default: every one."
)
@click.option("--plan", "plans", multiple=True, metavar="P", help="With --tenant: may put keys on this. Default: any.")
def token(
    name: str, rights: Literal["read", "write"], tenant: str | None, scopes: tuple[str, ...], plans: tuple[str, ...]
) -> None:
    """Make an admin token and its entry for the configuration.

    The token is printed this once; the entry holds its hash.

    \b
    Example:
      sidecar admin token --name ops
      sidecar admin token --name acme-portal --tenant acme --scope streams:read
    """
    if (scopes or plans) and tenant is None:
        raise Misuse("--scope and --plan bound a token of one tenant: add --tenant")
    if tenant == EVERY:
        raise Misuse(f"--tenant {EVERY}: leave it out for a token that administers every tenant")
    text = new_token()
    try:
        entry = token_entry(text, name=name, rights=rights, tenant=tenant, scopes=scopes, plans=plans)
    except ValueError as error:
        raise Misuse(str(error)) from error
    click.echo(f"\n    {text}\n")
    click.echo("This is the admin token. It is shown only now. In the configuration, write, or add to what is there:\n")
    click.echo(f"admin:\n  tokens:\n{indent(entry, '    ')}")
