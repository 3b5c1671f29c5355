"""Binds listeners to addresses; a failure becomes one line that says why."""

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from aiohttp import web

from sidecar.config.fields import Address
from sidecar.http.accepting import BindError
from sidecar.http.hardened import ServerLimits, serving_app
from sidecar.proxy.tls import describe


class StartError(Exception):
    """The configuration cannot be carried out. The message says what to do."""


async def serve_app(
    app: web.Application, addresses: Sequence[Address], option: str, *, limits: ServerLimits, stack: AsyncExitStack
) -> tuple[Address, ...]:
    """Serve `app` until `stack` is left; returns the bound addresses. Raises StartError, which names `option`."""
    with taken_port(option):
        return await stack.enter_async_context(serving_app(app, addresses, limits=limits))


@contextmanager
def unusable_certificate(option: str) -> Iterator[None]:
    """An OSError inside becomes a StartError."""
    try:
        yield
    except OSError as error:
        raise StartError(f"cannot use the certificates of {option}: {describe(error)}") from error


@contextmanager
def taken_port(option: str) -> Iterator[None]:
    """A BindError inside becomes a StartError."""
    try:
        yield
    except BindError as error:
        raise StartError(f"cannot listen on {error.address} ({option}): {error.reason}") from error
