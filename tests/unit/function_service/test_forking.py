"""What a process that forks on demand reaps and refuses: its children, and the orphans that it inherits."""

import errno
import os
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


# As the kernel refuses it (ETOOMANYREFS) where others of the user have left too many on their way
REFUSED = """
import errno, os, time
from function_service.engines.embedded import forking, messages

ours, theirs = messages.pair()
send = messages.send


def without_descriptors(channel, message, descriptors=()):
    if descriptors:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
    send(channel, message)


messages.send = without_descriptors
send(ours, {"fork": "one", "kind": "deliver"})
send(ours, {"end": True})
print(forking.serve(theirs, lambda order, descriptors: time.sleep(300)))
print(messages.receive(ours))
try:
    print(os.waitpid(-1, 0)[1])
except ChildProcessError:
    print(9)
"""


def test_a_fork_whose_descriptor_can_not_be_sent_is_refused_and_the_forker_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    refused = {"refused": "one", "error": os.strerror(errno.ETOOMANYREFS)}
    assert done.stdout.splitlines() == ["None", str((refused, [])), "9"], done.stderr
