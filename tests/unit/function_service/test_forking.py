"""What a process that forks on demand reaps: its own children, and the orphans that it inherits."""

import subprocess
import sys

from tests.support.platform import ROOT

# In a process of its own, since it waits for every child of the process that it runs in
ORPHAN = """
import os, signal
from function_service.engines.embedded import forking

signal.signal(signal.SIGCHLD, lambda *_: None)
ours, orphan = os.fork() or os._exit(3), os.fork() or os._exit(4)
for pid in ours, orphan:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print([(name, os.waitstatus_to_exitcode(status)) for name, status in forking.reap({ours: "an instance"})])
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none is left")
"""


def test_an_orphan_that_fell_to_it_is_reaped_and_reported_to_nobody() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines() == ["[('an instance', 3)]", "none is left"], done.stderr
