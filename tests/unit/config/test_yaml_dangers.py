import time

import pytest

from tests.unit.config.conftest import MINIMAL, Complaining, Loading

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "empty": (b"", "1:1: the file is empty"),
    "a comment": (b"# nothing\n", "1:1: the file is empty"),
    "text": (b"hello\n", "1:1: must be a mapping, not a single value"),
    "a list": (b"- a\n", "1:1: must be a mapping, not a list"),
    "an alias bomb": (BOMB.encode(), "too many or too deeply nested values"),
    "an alias of itself": (b"a: &a [*a]\n", "1:4: an alias contains itself"),
    "a deep list": (b"[" * 100_000, "1:62: too many or too deeply nested values"),
    "a deep mapping": (
        b"".join(b" " * level + b"a:\n" for level in range(200)),
        "too many or too deeply nested values",
    ),
    "a wide list": (b"a:\n" + b"-\n" * 100_001, "too many or too deeply nested values"),
    "two documents": (b"a: 1\n---\nb: 2\n", "2:1: expected a single document"),
    "Latin-1": (b"realm: caf\xe9\n", "1:11: the file is not UTF-8"),
    "NUL": (b"listen: x\nrealm: \x00\n", "2:8: holds a character that YAML does not allow"),
    "a syntax error": (b"a: [1\nb: 2\n", "2:2: while parsing a flow sequence expected"),
    "a tab": (b"a:\n\t- b\n", "2:1: "),
    "a Python tag": (b"a: !!python/object/apply:os.system [id]\n", "1:4: tags are not supported"),
    "a lone surrogate": (b'realm: "\\ud800"\n', "1:8: holds an escape that is not a character"),
    "an escape past Unicode": (b'realm: "\\UFFFFFFFF"\n', "holds an escape that is not a character"),
    "an unknown alias": (b"a: *nope\n", "1:4: found undefined alias 'nope'"),
    "a key that is a list": (b"? [a]\n: b\n", "1:3: a key must be text"),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED)
def test_an_unreadable_file_is_one_problem(problems: Complaining, data: bytes, expected: str) -> None:
    (line,) = problems(data)
    assert expected in line


def test_a_file_over_one_mebibyte_is_refused(problems: Complaining, loading: Loading) -> None:
    room = (1 << 20) - len(MINIMAL) - 1
    loading(MINIMAL + "#" * room + "\n")
    (line,) = problems(MINIMAL + "#" * room + "#\n")
    assert line.endswith("the file is larger than 1 MiB")


def test_a_file_that_is_not_there_is_refused(loading: Loading) -> None:
    from sidecar.config.errors import ConfigError
    from sidecar.config.load import load

    with pytest.raises(ConfigError, match=r"^/nowhere/sidecar\.yaml: cannot be read: No such file or directory$"):
        load("/nowhere/sidecar.yaml", environ={})


def test_an_alias_is_the_value_itself(loading: Loading) -> None:
    text = "routes:\n- GET /a: &reading {public: true}\n- GET /b: *reading\n"
    assert [route.policy.public for route in loading(MINIMAL + text).routes] == [True, True]


def test_a_problem_in_a_duplicate_section_does_not_hide_the_first(problems: Complaining) -> None:
    lines = problems(MINIMAL + "paths: {x: 1}\npaths: {y: 1}\n")
    assert [line.partition(": ")[2] for line in lines] == [
        "paths.x: unknown key (known are case_sensitive, colon, encoded_slash)",
        "paths: duplicate key, first in line 4",
    ]


def test_bombs_are_refused_before_they_go_off(problems: Complaining) -> None:
    began = time.process_time()
    problems(BOMB)
    problems(b"[" * 200_000)
    # A slow machine takes seconds; whoever expands BOMB needs years.
    assert time.process_time() - began < 60
