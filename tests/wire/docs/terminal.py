"""A shell in its own folder, into which the blocks of a page are typed one after another."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness import forks
from tests.harness.pages import README, blocks
from tests.harness.ports import free_port
from tests.harness.processes import ROOT, Lines, clean_environ
from tests.harness.tools import needed

PORTS = ("8000", "8080", "9090", "9091")
"""The ports in the pages. The machine may use them for something else, so each session has its own."""
BLOCK_SECONDS = 300.0
_PORT = re.compile(rf"\b({'|'.join(PORTS)})\b")
_STATUS = re.compile(r"HTTP/1\.[01] (\d{3})")
_EXPECTED = re.compile(r"# (\d{3})$", re.MULTILINE)
_COMES_UP = {"sidecar serve": "sidecar: ops listener on ", "http.server": "Serving HTTP on "}
"""Commands started with `&`, and what they print once they are ready."""


class Terminal:
    """bash with job control that ends at the first command that fails."""

    def __init__(self, folder: Path) -> None:
        needed("curl")
        programs = folder / "bin"
        programs.mkdir()
        start = " ".join(forks.command())
        (programs / "sidecar").write_text(f'#!/bin/sh\nexec {start} "$@"\n', encoding="utf-8")
        (programs / "sidecar").chmod(0o755)
        self._ports = {port: str(free_port()) for port in PORTS}
        self.folder = folder / "empty"
        self.folder.mkdir()
        environ = clean_environ(PYTHONPATH=str(ROOT), SIDECAR_ADMIN=f"127.0.0.1:{self._ports['9091']}")
        self._shell = subprocess.Popen(
            [needed("bash"), "--noprofile", "--norc"],
            cwd=self.folder,
            env=environ | {"PATH": f"{programs}:{environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            pass_fds=[forks.server().fileno()],
        )
        assert self._shell.stdout
        self._lines = Lines(self._shell.stdout)
        self._blocks = 0

    def __enter__(self) -> Self:
        # The doctor checks whether limits.connections fits the shell's open file limit.
        self._send('ulimit -S -n "$(ulimit -H -n)"')
        self._send("set -meu -o pipefail\ntrap 'kill -INT $(jobs -p) 2>/dev/null; wait' EXIT")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._shell.stdin
        with suppress(BrokenPipeError):  # It ended early.
            self._shell.stdin.close()
        try:
            self._shell.wait(BLOCK_SECONDS)
        finally:
            self._shell.kill()
            self._lines.join()

    def with_own_ports(self, text: str) -> str:
        return _PORT.sub(lambda found: self._ports[found[0]], text)

    def set_up(self) -> None:
        """The set-up in README's first five minutes."""
        [config] = [block.text for block in blocks(README, "yaml") if block.text.startswith("# sidecar.yaml\n")]
        (self.folder / "sidecar.yaml").write_text(self.with_own_ports(config), encoding="utf-8")
        for block in blocks(README, "bash"):
            self.run(block.text)

    def run(self, block: str) -> str:
        """The output of the block. Its requests must get the statuses noted behind them: `curl …   # 200`."""
        before, self._blocks = len(self._lines.all()), self._blocks + 1
        done = f"__block_{self._blocks}_is_done__"
        self._send(f"{self.with_own_ports(block)}\nprintf '\\n%s\\n' {done}")
        finished = self._lines.wait_for(lambda line: line == done, timeout=BLOCK_SECONDS)
        printed = "\n".join(self._lines.all()[before:])
        assert finished, f"this ended early or hangs:\n{block}\nIt printed:\n{printed}"
        for command, line in _COMES_UP.items():
            if re.search(rf"{command}.*&$", block, re.MULTILINE):
                self._wait_for(line, before)
        expected, statuses = _EXPECTED.findall(block), _STATUS.findall(printed)
        assert statuses == expected, f"{block}\nIt printed:\n{printed}"
        return printed

    def _wait_for(self, start: str, before: int) -> None:
        older = self._lines.all()[:before]
        many = sum(line.startswith(start) for line in older)
        found = self._lines.wait_for(
            lambda line: sum(one.startswith(start) for one in self._lines.all()) > many, timeout=BLOCK_SECONDS
        )
        assert found, f"nothing printed {start!r}: {self._lines.all()[before:]}"

    def _send(self, text: str) -> None:
        assert self._shell.stdin
        self._shell.stdin.write(text + "\n")
        self._shell.stdin.flush()
