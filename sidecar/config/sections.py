"""Sections of the configuration file on who may run the sidecar, and how it changes and ends, as they are written."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from sidecar.config.entry import Entry
from sidecar.config.fields import AdminTokenHash, BindAddress, Duration, HostName, Name, Timeout

DialectName = Literal["nginx", "caddy", "traefik", "envoy"]


class AdminTokenEntry(Entry, frozen=True, kw_only=True):
    """An admin token, by its hash. With a tenant, it reaches no further than that tenant's keys."""

    name: Name
    hash: AdminTokenHash
    rights: Literal["read", "write"] = "read"
    tenant: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    scopes: tuple[str, ...] | UnsetType = UNSET
    plans: tuple[str, ...] | UnsetType = UNSET


class AdminEntry(Entry, frozen=True, kw_only=True):
    """The admin listener, and who may use it."""

    listen: BindAddress = "127.0.0.1:9091"
    hosts: tuple[HostName, ...] = ()
    tokens: tuple[AdminTokenEntry, ...] = ()


class DecisionEntry(Entry, frozen=True, kw_only=True):
    """The decision listener, and the proxies that it is spoken to by."""

    listen: BindAddress
    dialects: Annotated[tuple[DialectName, ...], Meta(min_length=1)] = ("nginx", "caddy", "traefik", "envoy")


class ReloadEntry(Entry, frozen=True, kw_only=True):
    """Whether the file is looked at again and again, and how often."""

    watch: bool = True
    interval: Timeout = "2s"


class DrainEntry(Entry, frozen=True, kw_only=True):
    """How the sidecar ends after SIGTERM."""

    delay: Duration = "5s"
    timeout: Duration = "20s"
