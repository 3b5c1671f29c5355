"""What went wrong, as one clear line a problem on stderr and an exit status; never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import click

from sidecar.keys.lifecycle import MissingPepper
from sidecar.keys.ports import KeyConflict, StoreUnavailable
from sidecar.keys.validation import InvalidKey


class Failure(click.ClickException):
    """It could not be done. Exit status 1."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def show(self, file: IO[Any] | None = None) -> None:
        for problem in self.problems:
            click.echo(f"Error: {problem}", file=file, err=file is None)


class Misuse(Failure):
    """It was asked for in the wrong way: arguments, configuration or environment. Exit status 2."""

    exit_code: ClassVar[int] = 2


@contextmanager
def reported() -> Iterator[None]:
    """Expected exceptions inside become a Failure or Misuse."""
    try:
        yield
    except InvalidKey as error:
        raise Misuse(*error.problems) from error
    except (StoreUnavailable, KeyConflict, MissingPepper) as error:
        raise Failure(str(error)) from error
