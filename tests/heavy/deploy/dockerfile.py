"""A Dockerfile as instructions, as far as ours goes: no heredocs, no ONBUILD, no SHELL."""

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """`stage` counts the FROMs before it, from 0 for none; `text` is what follows the word, on one line."""

    stage: int
    word: str
    text: str

    @property
    def list(self) -> list[str]:
        """The strings of its exec form. Raises ValueError for a shell form."""
        found = json.loads(self.text)
        assert isinstance(found, list)
        return found


def instructions(text: str) -> list[Instruction]:
    """In order, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[Instruction] = []
    stage = 0
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(stage=stage, word=word, text=rest.strip()))
    return found
