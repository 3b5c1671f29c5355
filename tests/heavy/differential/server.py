"""A real nginx that reports what it parsed: in fields of forwarded requests, and in its access log."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.ports import comes_to_listen, free_port
from tests.harness.processes import STOP_SECONDS
from tests.harness.tools import needed

_CONFIG = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 256; }}
http {{
    log_format reading escape=json '{{"id": "$http_x_request_id", "status": "$status", "method": "$request_method",'
        ' "target": "$request_uri", "path": "$uri", "length": "$content_length", "request": "$request"}}';
    access_log {folder}/access.log reading;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    large_client_header_buffers 8 32k;
    keepalive_timeout 60;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {behind};
            proxy_http_version 1.1;
            proxy_set_header X-Read-Method $request_method;
            proxy_set_header X-Read-Target $request_uri;
            proxy_set_header X-Read-Path $uri;
            proxy_set_header X-Read-Length $content_length;
            proxy_set_header X-Read-Host $http_host;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def read(self) -> list[dict[str, Any]]:
        """Stop it; every request that it has seen, those that it refused, too."""
        self.process.send_signal(3)  # SIGQUIT: what is under way is finished and logged
        self.process.wait(STOP_SECONDS)
        lines = (self.folder / "access.log").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def running_nginx(folder: Path, *, behind: str) -> Iterator[Nginx]:
    """`behind`: the URL that it passes requests on to. Skips or fails where nginx is missing."""
    program = needed("nginx")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, behind=behind), encoding="utf-8")
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config)], stderr=subprocess.PIPE)
    try:
        if not comes_to_listen(process, port):
            process.kill()
            raise AssertionError(f"nginx does not listen: {process.communicate()[1].decode()}")
        yield Nginx(port=port, folder=folder, process=process)
    finally:
        process.terminate()
        process.communicate(timeout=STOP_SECONDS)
