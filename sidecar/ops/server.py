"""The ops listener: liveness, readiness and metrics."""

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp import hdrs, web

Ready = Callable[[], Awaitable[Sequence[str]]]
"""Returns the problems that keep the sidecar from deciding, a line each (`store: locked`). Without any it is ready."""

Alive = Callable[[], Awaitable[bool]]
"""Returns whether the data path answers."""

Remarks = Callable[[], Sequence[str]]
"""Returns remarks for the operator that do not affect readiness, as lines of the same form."""

Exposition = Callable[[str], tuple[bytes, str]]
"""Takes the Accept header; returns the metrics and their content type. Called in a thread."""

Refresh = Callable[[], Awaitable[None]]
"""Collects what `Exposition` should show."""

_READY_TIMEOUT_SECONDS = 2.0
_GZIP_LEVEL = 6
_WEIGHT = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")


async def _nothing() -> None:
    pass


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
    refresh: Refresh = _nothing,
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

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", _metrics(app, exposition, refresh))
    app.on_response_prepare.append(_finish_head)
    return app


def _metrics(
    app: web.Application, exposition: Exposition, refresh: Refresh
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A hundred routes are 6,000 samples, which take tens of milliseconds to write:

    in its own thread, because the loop's threads resolve names, and may all be waiting for a name server.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def end_thread(_: web.Application) -> AsyncIterator[None]:
        yield
        thread.shutdown(wait=False)

    async def metrics(request: web.Request) -> web.Response:
        accept = ", ".join(request.headers.getall(hdrs.ACCEPT, []))
        zipped = accepts_gzip(", ".join(request.headers.getall(hdrs.ACCEPT_ENCODING, [])))
        await refresh()
        job = partial(_exposed, exposition, accept, zipped)
        body, content_type = await asyncio.get_running_loop().run_in_executor(thread, job)
        encoding = {hdrs.CONTENT_ENCODING: "gzip"} if zipped else {}
        vary = f"{hdrs.ACCEPT}, {hdrs.ACCEPT_ENCODING}"
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, hdrs.VARY: vary, **encoding})

    app.cleanup_ctx.append(end_thread)
    return metrics


def _exposed(exposition: Exposition, accept: str, zipped: bool) -> tuple[bytes, str]:
    body, content_type = exposition(accept)
    return (gzip.compress(body, _GZIP_LEVEL, mtime=0) if zipped else body), content_type


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether the header names gzip, or everything, and does not refuse it (`q=0`); RFC 9110 section 12.5.3."""
    weights: dict[str, float] = {}
    for each in accept_encoding.lower().split(","):
        coding, *parameters = [part.strip() for part in each.split(";")]
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[coding] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


async def _problems(ready: Ready) -> Sequence[str]:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
            return await ready()
    except TimeoutError:
        return [f"readiness: no answer within {_READY_TIMEOUT_SECONDS:g} s"]
    except Exception as failure:
        # A check that raises is a problem. Only the exception's type is shown: its message may contain a secret.
        return [f"readiness: {type(failure).__name__}"]


def _each(checks: Sequence[str], problems: Sequence[str]) -> list[str]:
    named = {problem.partition(":")[0] for problem in problems}
    return [*problems, *(f"{name}: ok" for name in checks if name not in named)] or ["ok"]


async def _finish_head(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    response.headers.popall(hdrs.SERVER, None)
