"""Checks of the running sidecar."""

from typing import Final

from sidecar.doctor.facts import Facts, RunningFacts, Unknown
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

_FAULTS: Final = {
    "sidecar_background_failures_total": "failed attempts to write usage and quotas",
    "sidecar_usage_dropped_total": "dropped usage counts",
    "sidecar_access_log_dropped_total": "dropped access log lines",
    "sidecar_log_dropped_total": "dropped lines of stderr",
}
_NEEDS_RESTART: Final = "needs a restart"


def readiness(facts: Facts) -> Finding:
    """Whether /readyz reports that it is ready."""
    found = facts.running
    if isinstance(found, Unknown):
        return unchecked(found.reason, do="Run doctor where the sidecar runs, with its SIDECAR_* variables.")
    if found.ready:
        return ok(f"ready, /readyz took {span(found.seconds)}")
    return problem(
        "not ready: " + "; ".join(line for line in found.lines if not line.endswith(": ok")),
        why="Load balancers send it no requests, and it may be unable to verify keys.",
        do="Fix what it names. `sidecar_store_seconds` and stderr show more.",
    )


def configuration(facts: Facts) -> Finding | None:
    """Whether the running configuration is that of the file."""
    found = facts.running
    if isinstance(found, Unknown):
        return None
    remark = next((line for line in found.lines if line.startswith("config:") and not line.endswith(": ok")), "")
    if found.metrics.get("sidecar_config_last_reload_successful") == 0:
        return problem(
            remark or "the last reload failed",
            why="The previous configuration stays in force, and later changes have no effect.",
            do=f"`sidecar check {facts.config.path}` prints what is wrong with it.",
        )
    expected = f'sidecar_config_info{{sha256="{facts.config.sha256}"}}'
    if expected in found.metrics:
        return _in_force(remark)
    if not any(sample.startswith("sidecar_config_info") for sample in found.metrics):
        return unchecked("it does not report which configuration is in force")
    return warning(
        f"the running configuration is not that of {facts.config.path}",
        why="The sidecar uses another file, or has not read this one since it changed.",
        do="Send it SIGHUP, then run doctor again with the file and the variables that it was started with.",
    )


def _in_force(remark: str) -> Finding:
    if _NEEDS_RESTART not in remark:
        return ok("the running configuration is that of the file")
    return warning(
        remark,
        why="A reload cannot change these settings, so the sidecar still runs with their old values.",
        do="Restart the sidecar.",
    )


def writes(facts: Facts) -> Finding | None:
    """Whether the store took the last change of the running sidecar."""
    found = facts.running
    writable = None if isinstance(found, Unknown) else found.metrics.get("sidecar_store_writable")
    if isinstance(found, Unknown) or writable is None:
        return None
    if writable:
        return ok("the store took the last change")
    told = next((line for line in found.lines if line.startswith("store: the last change")), "")
    return problem(
        told.removeprefix("store: ") or "the store did not take the last change",
        why="Requests are still decided on, but keys cannot be issued or revoked, and usage and quotas are not kept.",
        do="Do what it says. The metric `sidecar_store_writable` is 1 once a change was written.",
    )


def program(facts: Facts) -> Finding | None:
    """Whether the running sidecar has the version of this program."""
    found = facts.running
    if isinstance(found, Unknown):
        return None
    builds = [sample for sample in found.metrics if sample.startswith("sidecar_build_info")]
    if any(f'version="{facts.version}"' in build for build in builds):
        return ok(f"version {facts.version}, the same as doctor")
    return warning(
        f"the running version is not doctor's ({facts.version})",
        why="Some findings may not apply to the running version.",
        do="Run the doctor of the running version, or restart the sidecar with this one.",
    )


def faults(facts: Facts) -> Finding | None:
    """Whether the running sidecar has dropped anything since its start."""
    found = facts.running
    if isinstance(found, Unknown):
        return None
    counts = {text: _sum(found, name) for name, text in _FAULTS.items()}
    some = [f"{count:,.0f} {text}" for text, count in counts.items() if count]
    if not some:
        return ok("nothing was dropped, and no background task failed")
    return warning(
        f"since the sidecar started: {'; '.join(some)}",
        why="Dropped data is missing from usage, quotas or logs.",
        do="Check the store (locked? disk full?) and whatever reads the log. stderr shows when it happened.",
    )


def _sum(found: RunningFacts, name: str) -> float:
    return sum(value for sample, value in found.metrics.items() if sample.partition("{")[0] == name)
