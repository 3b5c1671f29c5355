"""Binds listeners to addresses; a failure becomes one line that says why."""

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

from aiohttp import web

from sidecar.config.fields import Address
from sidecar.http.hardened import ServerLimits, serving_app
from sidecar.proxy.tls import describe


class StartError(Exception):
    """The configuration cannot be carried out. The message says what to do."""


async def serve_app(
    app: web.Application, address: Address, option: str, *, limits: ServerLimits, stack: AsyncExitStack
) -> Address:
    """Serve `app` until `stack` is left; returns the bound address. Raises StartError, which names `option`."""
    with taken_port(address, option):
        return await stack.enter_async_context(serving_app(app, address, limits=limits))


@contextmanager
def unusable_certificate(option: str) -> Iterator[None]:
    """An OSError inside becomes a StartError."""
    try:
        yield
    except OSError as error:
        raise StartError(f"cannot use the certificates of {option}: {describe(error)}") from error


@contextmanager
def taken_port(address: Address, option: str) -> Iterator[None]:
    """An OSError inside becomes a StartError."""
    try:
        yield
    except OSError as error:
        # Of a bind, asyncio's own text repeats the address.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise StartError(f"cannot listen on {address} ({option}): {reason}") from error
