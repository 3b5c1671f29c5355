"""The ops listener: liveness, readiness and metrics."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import hdrs, web

Ready = Callable[[], Awaitable[Sequence[str]]]
"""Returns the problems that keep the sidecar from deciding, a line each (`store: locked`). Without any it is ready."""

Alive = Callable[[], Awaitable[bool]]
"""Returns whether the data path answers."""

Remarks = Callable[[], Sequence[str]]
"""Returns what an operator should know although the sidecar is ready, as lines of the same form."""

Exposition = Callable[[str], tuple[bytes, str]]
"""Takes the Accept header; returns the metrics and their content type."""

_READY_TIMEOUT_SECONDS = 2.0


def _none() -> Sequence[str]:
    return ()


async def _always() -> bool:
    return True


def ops_app(
    *,
    ready: Ready,
    exposition: Exposition,
    alive: Alive = _always,
    checks: Sequence[str] = (),
    remarks: Remarks = _none,
) -> web.Application:
    """`/livez`, `/readyz`, `/metrics`, for GET and HEAD.

    checks: names of what `ready` and `remarks` check. `/readyz?verbose` lists each with `ok`, or with its problem.
    """

    async def livez(_: web.Request) -> web.Response:
        if await alive():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="data: the data listener does not answer\n")

    async def readyz(request: web.Request) -> web.Response:
        problems = await _problems(ready)
        verbose = "verbose" in request.query
        lines = _each(checks, [*problems, *remarks()]) if verbose else list(problems) or ["ok"]
        return web.Response(status=503 if problems else 200, text="\n".join(lines) + "\n")

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = exposition(", ".join(request.headers.getall(hdrs.ACCEPT, [])))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.on_response_prepare.append(_finish_head)
    return app


async def _problems(ready: Ready) -> Sequence[str]:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
            return await ready()
    except TimeoutError:
        return [f"readiness: no answer within {_READY_TIMEOUT_SECONDS:g} s"]
    except Exception as failure:
        # A check that fails is a problem. Only its type is shown: a message may hold a secret.
        return [f"readiness: {type(failure).__name__}"]


def _each(checks: Sequence[str], problems: Sequence[str]) -> list[str]:
    named = {problem.partition(":")[0] for problem in problems}
    return [*problems, *(f"{name}: ok" for name in checks if name not in named)] or ["ok"]


async def _finish_head(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    response.headers.popall(hdrs.SERVER, None)
