"""Judgements of the sidecar that runs."""

from typing import Final

from sidecar.doctor.facts import Facts, RunningSeen, Unknown
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

_FAULTS: Final = {
    "sidecar_background_failures_total": "rounds of writing use and quotas that failed",
    "sidecar_usage_dropped_total": "counts of use that were dropped",
    "sidecar_access_log_dropped_total": "lines of the access log that were dropped",
}
_NEEDS_RESTART: Final = "needs a restart"


def readiness(seen: Facts) -> Finding:
    found = seen.running
    if isinstance(found, Unknown):
        return unchecked(found.reason, do="Run doctor where the sidecar runs, with its SIDECAR_* variables.")
    if found.ready:
        return ok(f"ready, told in {span(found.seconds)}")
    return problem(
        "not ready: " + "; ".join(line for line in found.lines if not line.endswith(": ok")),
        why="Balancers send it nothing, and keys may not be verified.",
        do="Mend what it says; `sidecar_store_seconds` and stderr tell more.",
    )


def configuration(seen: Facts) -> Finding | None:
    """Whether what is in force is what stands in the file."""
    found = seen.running
    if isinstance(found, Unknown):
        return None
    remark = next((line for line in found.lines if line.startswith("config:") and not line.endswith(": ok")), "")
    if found.metrics.get("sidecar_config_last_reload_successful") == 0:
        return problem(
            remark or "the last reload failed",
            why="The configuration before it stays in force, and changes since then have no effect.",
            do=f"`sidecar check {seen.config.path}` prints what is wrong with it.",
        )
    told = f'sidecar_config_info{{sha256="{seen.config.sha256}"}}'
    if told in found.metrics:
        return _in_force(remark)
    if not any(sample.startswith("sidecar_config_info") for sample in found.metrics):
        return unchecked("it does not say which configuration is in force")
    return warning(
        f"{seen.config.path} is not what is in force",
        why="The sidecar read another file, or has not read this one since it changed.",
        do="Send it SIGHUP, and run doctor again with the file and the variables that it was started with.",
    )


def _in_force(remark: str) -> Finding:
    if _NEEDS_RESTART not in remark:
        return ok("what stands in the file is in force")
    return warning(
        remark,
        why="A reload cannot change these, so that the file says other than what is so.",
        do="Restart the sidecar.",
    )


def program(seen: Facts) -> Finding | None:
    found = seen.running
    if isinstance(found, Unknown):
        return None
    builds = [sample for sample in found.metrics if sample.startswith("sidecar_build_info")]
    if any(f'version="{seen.version}"' in build for build in builds):
        return ok(f"version {seen.version}, as this program")
    return warning(
        f"another version than this program ({seen.version}) runs",
        why="Some of what doctor says may be of this version only.",
        do="Run the doctor of the version that runs, or restart the sidecar with this one.",
    )


def faults(seen: Facts) -> Finding | None:
    found = seen.running
    if isinstance(found, Unknown):
        return None
    counts = {told: _sum(found, name) for name, told in _FAULTS.items()}
    some = [f"{count:,.0f} {told}" for told, count in counts.items() if count]
    if not some:
        return ok("nothing was dropped, and no round in the background failed")
    return warning(
        f"since its start: {'; '.join(some)}",
        why="What is dropped is missing in usage, quotas or logs.",
        do="Look at the store (locked, disk full?) and at who reads the log; stderr tells when it was.",
    )


def _sum(found: RunningSeen, name: str) -> float:
    return sum(value for sample, value in found.metrics.items() if sample.partition("{")[0] == name)
