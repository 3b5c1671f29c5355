"""`sidecar serve`."""

import asyncio
import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from sidecar.app import running
from sidecar.cli.main import output_failed
from sidecar.cli.options import (
    Failure,
    Misuse,
    config_option,
    config_or_exit,
    config_path_option,
    load_or_exit,
    reader_of,
)
from sidecar.cli.workers import common_of, count_of, end_with_parent, supervise, wait_for_workers, work
from sidecar.config.build.addresses import reaches
from sidecar.config.build.config import NO_ADMIN_TOKEN, Config
from sidecar.config.document import Process
from sidecar.config.fields import Address
from sidecar.runtime.control import DRAIN, UNDO, NoAnswer, ask
from sidecar.runtime.descriptors import raise_limit
from sidecar.runtime.serving import StartError
from sidecar.runtime.supervisor import HURRY, Seat
from sidecar.runtime.workers import Control
from sidecar.telemetry.standard_error import QueuedText, queued_stderr

# Settings of the C library and the interpreter.

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT_BYTES = 16 * 1024 * 1024
LARGEST_KEPT_BYTES = 1024 * 1024
SWITCH_SECONDS = 0.0005
_PR_SET_DUMPABLE = 4
"""Option of prctl(2). A process can still read its own /proc/self/fd, /dev/fd and /proc/self/mountinfo."""
_NO_CORE_DUMP = 1


def keep_freed_memory() -> None:
    """Keep up to KEPT_BYTES of freed memory, if the C library is glibc.

    By default glibc returns it immediately, and the kernel must clear every page again for the next response of 64 KiB:
    a third of the cost of such a response.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def let_requests_go_first() -> None:
    """Make other threads give way to the event loop within SWITCH_SECONDS.

    By default the loop, and with it every request, waits 5 ms for the interpreter while another thread computes.
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def keep_memory_private(rules: Process) -> None:
    """Prevent core dumps, and reads of memory by other processes, as `rules` say. Raises StartError.

    A limit of one byte is less than any dump, and also keeps the kernel from piping one to a program
    (`kernel.core_pattern`), which it does with a limit of 0 (fs/coredump.c).
    """
    if not rules.core_dumps:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        least = 0 if hard == 0 else _NO_CORE_DUMP
        resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    if not rules.dumpable:
        prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
        if prctl is None or prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise StartError("process.dumpable: false cannot be carried out: this system has no PR_SET_DUMPABLE")


def reap_adopted() -> None:
    """Let the kernel reap children. Process 1 of a container adopts others' children; the sidecar starts none."""
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # Those that have already ended.
                pass


def refuse_loops(config: Config, path: str) -> None:
    """Refuse an upstream whose name leads back here; what an address shows was refused when the file was read.

    Looks up only names with the port of a listener. Raises Misuse.
    """
    for name, upstream in config.every_upstream.items():
        option, address = "upstream" if name is None else f"upstreams.{name}", upstream.address
        for listener, own in config.listeners.items():
            alike = [each for each in own if each.port == address.port and not address.path and not each.path]
            if alike and any(reaches(here, each, here=True) for here in _here(address) for each in alike):
                what = f"{address} is the sidecar itself, at the address of {listener}"
                raise Misuse(f"{path}: {option}: {what}: name the service's own")


def _here(address: Address) -> list[Address]:
    """The addresses of this machine that its name stands for."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    hosts = {str(where[0]) for family, _, _, _, where in found if _is_own(family, str(where[0]))}
    return [replace(address, host=host) for host in hosts]


def _is_own(family: int, host: str) -> bool:
    """Nobody can bind to the address of another machine."""
    with socket.socket(family, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.bind((host, 0))
        return True
    return False


@click.command("serve")
@config_option
@click.option(
    "--listen", metavar="ADDRESS", help="Data listener: host:port or unix:/path; several with commas between."
)
@click.option("--ops", metavar="ADDRESS", help="Ops listener: /livez /readyz /metrics.")
@click.option("--admin", metavar="ADDRESS", help="Admin listener: the page and the API.")
@click.option("--upstream", metavar="URL", help="The protected service: http://…, https://… or unix:/path.")
@click.option(
    "--store", metavar="URL", help="Key store: sqlite:///absolute/path.db or postgresql://user@host/database."
)
@click.option("--limiter", metavar="URL", help="Where quotas are counted: memory or redis://host:port.")
@click.option("--workers", metavar="N|auto", help="Processes for the data listener; auto: one a core. Default: 1.")
def serve_command(config_path: str, **options: str | None) -> None:
    """Run the sidecar until SIGTERM or SIGINT. It reloads the configuration on SIGHUP and when the file changes.

    \b
    Example:
      sidecar serve -c sidecar.yaml --listen 127.0.0.1:8080 --upstream http://127.0.0.1:8000

    Options override SIDECAR_* variables (SIDECAR_LISTEN, SIDECAR_STORE, …), and variables override the file. Exits with
    2 if the configuration is wrong, and with 1 if it cannot start: port in use, store unreadable, pepper missing.
    On SIGTERM it first reports that it is not ready, so that load balancers stop sending, then finishes the running
    requests (`drain` in the file). On SIGINT it only finishes them. A second signal stops it at once.

    With --workers, so many processes serve the data listener, and one more all other listeners. Signals go to the first
    process, which starts those again that die. Quotas, metrics and readiness are those of all together.
    """
    keep_freed_memory()
    let_requests_go_first()
    early = _early_reloads()
    config, read_again = load_or_exit(config_path, options), reader_of(config_path, options)
    refuse_loops(config, config_path)
    workers = count_of(config.workers)
    if workers > 1:
        sys.exit(_supervise(config, read_again, workers))
    reap_adopted()
    run(lambda stderr: _serve(config, read_again, stderr, early))


def _supervise(config: Config, read_again: Callable[[], Config], workers: int) -> int:
    """Run as the parent, without a loop or threads. Returns the exit status."""
    try:
        keep_memory_private(config.process)
        common = common_of(config, workers)
    except StartError as error:
        click.echo(f"sidecar: {error}", err=True)
        return 1

    def run_child(seat: Seat) -> int:
        if seat.parent is None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # The control process reloads for all.
            run(lambda stderr: work(seat, common, stderr), lock=common.stderr_lock)
            return 0
        for listening in common.sockets:
            listening.close()
        control = Control(common=common, ends=seat.ends, parent=seat.parent, life=seat.life, before=seat.before)
        begins = config if seat.before is None else seat.before.config
        run(lambda stderr: _serve(begins, read_again, stderr, seat.early, control), lock=common.stderr_lock)
        return 0

    return supervise(common, run_child)


def _early_reloads() -> Sequence[int]:
    """Collect SIGHUPs that arrive before anything can reload.

    The default action would terminate the process, and ignoring them would lose a change of the file.
    """
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda signum, _: early.append(signum))
    return early


def run(main: Callable[[QueuedText], Coroutine[Any, Any, None]], *, lock: int | None = None) -> None:
    """Run `main`, on uvloop if it is installed. A StartError becomes one line on stderr and exit status 1.

    main: receives the new standard error, to which no write blocks. lock: as in `queued_stderr`.
    """
    with queued_stderr(lock) as stderr:
        try:
            raise_limit()
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(main(stderr))
        except StartError as error:
            click.echo(f"sidecar: {error}", err=True)
            sys.exit(1)
        except Exception as error:
            if output_failed(error):  # Output of the demo.
                raise
            # Here, because later waits for stderr would be unlimited.
            sys.excepthook(*sys.exc_info())
            sys.exit(1)


async def _serve(
    config: Config,
    read_again: Callable[[], Config],
    stderr: QueuedText,
    early: Sequence[int],
    control: Control | None = None,
) -> None:
    """early: the SIGHUPs that arrived before it could reload. control: for a process that has workers."""
    keep_memory_private(config.process)
    loop, stopping, interrupted = asyncio.get_running_loop(), stop_event(), asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        stopping.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    if control is not None:
        end_with_parent(control.life, interrupt)
    async with running(config, read_again=read_again, log_dropped=lambda: stderr.dropped, control=control) as app:
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        if early or _may_have_missed_a_change(config, control):
            app.reload()
        if app.workers is not None:
            await wait_for_workers(app.workers, stopping)
        for name, addresses in app.listeners.items():
            for address in addresses:
                click.echo(f"sidecar: {name} listener on {address}", err=True)
        if config.admin_lacks_token:
            click.echo(f"sidecar: admin: {NO_ADMIN_TOKEN}", err=True)
        click.echo(f"sidecar: {await app.summary()}; {_listening(app.listeners)}", err=True)
        await stopping.wait()
        _on_hurry(app.hurry, is_child=control is not None)
        click.echo(f"sidecar: draining: {app.draining(at_once=interrupted.is_set())}", err=True)
        await app.drain(at_once=interrupted.is_set())


def _may_have_missed_a_change(config: Config, control: Control | None) -> bool:
    """Nobody watched the file while the control process before was dead."""
    return control is not None and control.before is not None and config.reload.watch


def _listening(listeners: Mapping[str, Sequence[Address]]) -> str:
    return ", ".join(f"{name} listener on {' and '.join(map(str, addresses))}" for name, addresses in listeners.items())


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    _on_stop(stopping.set)
    return stopping


def _on_hurry(hurry: Callable[[], None], *, is_child: bool) -> None:
    """React to a second signal to stop. A child gets another signal from the parent; see `supervisor.HURRY`."""
    if is_child:
        asyncio.get_running_loop().add_signal_handler(HURRY, hurry)
    else:
        _on_stop(hurry)


def _on_stop(do: Callable[[], None]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, do)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


# Taking a running sidecar out of service.


@click.command("drain")
@config_path_option("Configuration that names the socket in `drain: socket:`.")
@click.option(
    "--socket", "path", type=click.Path(), metavar="FILE", help="The socket itself; the configuration is not read."
)
@click.option("--undo", is_flag=True, help="Be ready again.")
def drain_command(config: str | None, path: str | None, undo: bool) -> None:
    """Take the running sidecar out of service without ending it.

    \b
    Example:
      sidecar drain -c sidecar.yaml
      sidecar drain --undo -c sidecar.yaml

    /readyz turns 503 and every response closes its connection, so that balancers and clients go elsewhere; requests and
    new connections are served as before, until SIGTERM or --undo. The command returns as soon as the sidecar has
    answered (at most 5 seconds) and waits for no request. It reaches the sidecar by the Unix socket that the file names
    (`drain: {socket: FILE}`), as the same user or root. Exits with 1 if no sidecar answers there, or if it is too late
    to undo it.
    """
    try:
        click.echo(ask(path or _socket_of(config), UNDO if undo else DRAIN))
    except NoAnswer as error:
        raise Failure(str(error)) from error


def _socket_of(config: str | None) -> str:
    found = config_or_exit(config)
    path = load_or_exit(found, {}).drain.socket
    if not path:
        raise Misuse(f"{found} has no `drain: {{socket: FILE}}`: a running sidecar is reached through that socket")
    return path
