"""For all tests: what could not run here is listed at the end; where everything must run (CI=true), it fails."""

import os

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def _reasons(reporter) -> dict[str, int]:
    """Return why tests were skipped, and how many for each reason."""
    reasons: dict[str, int] = {}
    for report in reporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def pytest_terminal_summary(terminalreporter) -> None:
    reasons = _reasons(terminalreporter)
    if reasons:
        terminalreporter.section("what this machine could not run")
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''}: {reason}")
        if os.environ.get("CI") == "true":
            terminalreporter.write_line("With CI=true that is a failure: .ci/run installs what is needed.")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return  # a worker, which reports to the process that this is decided in
    if os.environ.get("CI") == "true" and session.exitstatus == 0 and _reasons(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
