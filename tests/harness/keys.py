"""Keys by way of the command line, in this process for speed."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from sidecar.cli.main import main
from tests.harness.processes import clean_environ

_MADE: dict[tuple[object, ...], bytes] = {}
"""Stores that were made, by what they were made of; a fifth of a mebibyte each."""
_MOST_MADE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """The output of `keys issue --json`."""

    id: str
    text: str
    """The plaintext."""
    told: dict[str, Any]


class Keys:
    """`sidecar keys …` on one configuration and store. `environ`: such as SIDECAR_PEPPER."""

    def __init__(self, config: Path, store: Path | str, environ: dict[str, str] | None = None) -> None:
        """store: a file of SQLite, or a URL."""
        self.config = config
        self.store = Path() if isinstance(store, str) else store
        self.url = store if isinstance(store, str) else f"sqlite://{store}"
        self._environ = environ or {}

    def issue(
        self,
        name: str = "a test's key",
        *,
        scopes: tuple[str, ...] = (),
        tenant: str | None = None,
        environment: str | None = None,
        plan: str | None = None,
        expires: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> IssuedKey:
        options = {"--tenant": tenant, "--environment": environment, "--plan": plan, "--expires": expires}
        arguments = [f"--scope={scope}" for scope in scopes]
        arguments += [f"{option}={value}" for option, value in options.items() if value is not None]
        arguments += [f"--metadata={entry}={value}" for entry, value in (metadata or {}).items()]
        told = self.told("issue", "--name", name, *arguments)
        return IssuedKey(id=told["id"], text=told["key"], told=told)

    def make_store(self, name: str) -> None:
        """With a key of this name in it, unless `keys.require` demands more of one.

        The same configuration makes the same store; the second time, it is a copy of the first, where it is a file.
        """
        if not self.url.startswith("sqlite:"):
            self._make_store(name)
            return
        kind = (name, self.config.read_bytes(), *sorted(self._environ.items()))
        if kind in _MADE:
            self.store.touch(0o600)
            self.store.write_bytes(_MADE[kind])
            return
        self._make_store(name)
        if len(_MADE) < _MOST_MADE:
            _MADE[kind] = self.store.read_bytes()

    def _make_store(self, name: str) -> None:
        if self.run("issue", "--name", name).exit_code == 0:
            return
        line = ["store", "make", "-c", str(self.config)]
        made = run_cli(*line, environ={"SIDECAR_STORE": self.url, **self._environ})
        assert made.exit_code == 0, made.output

    def told(self, verb: str, *arguments: str) -> Any:
        """What `sidecar keys VERB … --json` prints; the command must succeed."""
        result = self.run(verb, *arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def run(self, verb: str, *arguments: str, stdin: str | None = None) -> Result:
        """`sidecar keys VERB …`, whether or not it succeeds."""
        line = ["keys", verb, "-c", str(self.config), *arguments]
        return run_cli(*line, environ={"SIDECAR_STORE": self.url, **self._environ}, stdin=stdin)


def moment(told: dict[str, Any], name: str) -> datetime:
    """A time of a key, from the command line's output."""
    return datetime.fromisoformat(told[name])


def run_cli(*arguments: str, environ: dict[str, str] | None = None, stdin: str | None = None) -> Result:
    """`sidecar …` in a thread of its own, because the commands run an event loop."""
    given: dict[str, str | None] = dict(clean_environ(**(environ or {})))
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(CliRunner().invoke, main, list(arguments), input=stdin, env=given).result()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
