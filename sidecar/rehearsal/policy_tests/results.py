"""The results of the cases of a file, also for programs: as JSON, and as JUnit's XML."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import basename
from typing import Any
from xml.etree import ElementTree

from msgspec import Struct

from sidecar.core.apikey import without_keys
from sidecar.limiter.port import Limiter
from sidecar.rehearsal.policy_tests.comparison import Difference, differences
from sidecar.rehearsal.policy_tests.coverage import Coverage, Gap, Places, Reached, Rule, reasons_why, rules
from sidecar.rehearsal.policy_tests.judge import Judge
from sidecar.rehearsal.policy_tests.suite import Case, Suite


class Result(Struct, frozen=True, kw_only=True):
    """A case without differences has passed; only a failed case has rules and reasons."""

    case: Case
    got: str
    """`allow`, or the reason."""
    would_deny: str | None = None
    """The reason of a refusal that is only observed."""
    differences: Sequence[Difference] = ()
    rules: Sequence[Rule] = ()
    why: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The case's name, often its request line: a key that was pasted there is shortened, as in every error."""
        return without_keys(self.case.name)

    @property
    def title(self) -> str:
        return f"{without_keys(self.case.group)}: {self.name}" if self.case.group else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResults:
    """The results of one file, in its order. seconds: duration of its cases, without reading the file."""

    path: str
    config: str
    results: Sequence[Result]
    seconds: float

    @property
    def failed(self) -> Sequence[Result]:
        return [result for result in self.results if result.differences]


def selected(suite: Suite, text: str) -> Callable[[Case], bool]:
    """Whether a case is selected: its title, or its place without folders, contains `text`, ignoring case."""
    wanted = text.casefold()

    def is_wanted(case: Case) -> bool:
        return not wanted or wanted in f"{case.group}: {case.name} {basename(case.where)}".casefold()

    return is_wanted


def results_of(
    suite: Suite, new_limiter: Callable[[], Limiter], *, wanted: Callable[[Case], bool], reached: Reached
) -> Iterator[Result]:
    """Judges every case, because others may follow it, and yields the selected ones."""
    judge, places = Judge(suite, new_limiter), Places(suite.config.path)
    for case in suite.cases:
        outcome = judge.judge(case)
        if not wanted(case):
            continue
        reached.add(outcome)
        found = differences(judge, outcome)
        observed = None if outcome.observed is None else str(outcome.observed.reason)
        if not found:
            yield Result(case=case, got=outcome.word, would_deny=observed)
            continue
        why = reasons_why(suite.config, outcome)
        decided = rules(suite.config, outcome, places)
        yield Result(case=case, got=outcome.word, would_deny=observed, differences=found, rules=decided, why=why)


# As JSON.


def as_json(files: Sequence[FileResults], covered: Sequence[Coverage] | None) -> dict[str, Any]:
    """`ok`, `counts`, `files` with the failed cases, and `coverage` if it was requested."""
    total, failed = sum(len(file.results) for file in files), sum(len(file.failed) for file in files)
    document: dict[str, Any] = {
        "ok": failed == 0,
        "counts": {"cases": total, "passed": total - failed, "failed": failed},
        "files": [_file_as_json(file) for file in files],
    }
    if covered is not None:
        document["coverage"] = [_coverage_as_json(one) for one in covered]
    return document


def _file_as_json(file: FileResults) -> dict[str, Any]:
    return {
        "file": file.path,
        "config": file.config,
        "cases": len(file.results),
        "seconds": round(file.seconds, 6),
        "failed": [_failure_as_json(result) for result in file.failed],
    }


def _failure_as_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "group": result.case.group,
        "where": result.case.where,
        "got": result.got,
        "would_deny": result.would_deny,
        "differences": [{"what": one.what, "expected": one.expected, "got": one.got} for one in result.differences],
        "rules": [{"where": rule.where, "text": rule.text} for rule in result.rules],
        "why": list(result.why),
    }


def _coverage_as_json(covered: Coverage) -> dict[str, Any]:
    gaps = [{"kind": gap.kind, "name": gap.name, "where": gap.where, "missing": gap.missing} for gap in covered.gaps]
    counts = {"percent": round(covered.percent, 1), "total": covered.total, "reached": covered.reached}
    return {"config": covered.config, **counts, "gaps": gaps}


# As JUnit's XML, which GitLab, Jenkins and others show.


def as_junit(files: Sequence[FileResults]) -> bytes:
    """`testsuites` with a `testsuite` for each file."""
    root = ElementTree.Element("testsuites", {"name": "sidecar test", **_totals(files)})
    for file in files:
        suite = ElementTree.SubElement(root, "testsuite", {"name": _xml(file.path), **_totals([file])})
        for result in file.results:
            _add_case(suite, file, result)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _totals(files: Sequence[FileResults]) -> Mapping[str, str]:
    tests, failures = sum(len(file.results) for file in files), sum(len(file.failed) for file in files)
    time = sum(file.seconds for file in files)
    return {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": "0", "time": f"{time:.6f}"}


def _add_case(suite: ElementTree.Element, file: FileResults, result: Result) -> None:
    path, _, line = result.case.where.rpartition(":")
    each = file.seconds / len(file.results)
    where = {"classname": _xml(file.path), "file": _xml(path), "line": line, "time": f"{each:.6f}"}
    case = ElementTree.SubElement(suite, "testcase", {"name": _xml(result.title), **where})
    if result.differences:
        first = result.differences[0]
        message = _xml(f"{first.what}: expected {first.expected}, got {first.got}")
        failure = ElementTree.SubElement(case, "failure", {"type": "failure", "message": message})
        failure.text = _xml("\n".join(described(result)))


def described(result: Result) -> Iterator[str]:
    """A line for each difference, each rule, and each reason why."""
    for one in result.differences:
        yield f"{one.what}: expected {one.expected}, got {one.got}"
    for rule in result.rules:
        yield f"rule: {rule.where + '  ' if rule.where else ''}{rule.text}"
    for sentence in result.why:
        yield f"why: {sentence}"


def _xml(text: str) -> str:
    """Removes characters that XML does not allow."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def gaps_by_kind(gaps: Iterable[Gap]) -> Mapping[str, Sequence[Gap]]:
    """Groups by kind, in the order of their first occurrence."""
    found: dict[str, list[Gap]] = {}
    for gap in gaps:
        found.setdefault(gap.kind, []).append(gap)
    return found
