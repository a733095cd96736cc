"""What git runs before and after it moves refs. It asks the builder and prints what comes back, as it comes.

It runs on any Python 3 of the machine, alone in a folder, and starts for each push twice: hence no import
of ours, and `_socket` in place of `socket` (which costs 6 ms more). `hookserver.py` is the other side.
"""

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

GONE = "Pilotlight's builder went away. {} Push again in a moment.\n"
AFTERMATH = {
    "pre-receive": "Nothing was changed.",
    "post-receive": "The commit is stored, and goes live as soon as the builder is back.",
}


def main() -> int:
    """Return 0 if the builder agrees."""
    hook = sys.argv[1]
    # a quarantine's path may be relative to the repository, which is where git starts a hook
    objects = os.environ.get("GIT_OBJECT_DIRECTORY", "")
    objects = os.path.abspath(objects) if objects else ""  # noqa: PTH100  pathlib takes 10 ms to import
    updates = sys.stdin.buffer.read()
    fields = [os.environ["PILOTLIGHT_PUSH"].encode(), hook.encode(), os.fsencode(objects), updates]
    message = b"\0".join(fields)
    connection = socket(AF_UNIX, SOCK_STREAM)
    verdict = b""
    try:
        # a socket's path is short when it is named from within its folder, however deep that lies
        folder, name = os.path.split(os.environ["PILOTLIGHT_HOOKS"])
        os.chdir(folder)
        connection.connect(name)
        connection.sendall(b"%d\n" % len(message) + message)
        while piece := connection.recv(65536):
            text, end, verdict = piece.partition(b"\0")
            os.write(1, text)
            if end:
                verdict = verdict or connection.recv(1)
                break
    except OSError as error:
        sys.stdout.write(f"Pilotlight's builder can't be reached: {error.strerror}.\n")
    if verdict not in {b"0", b"1"}:
        sys.stdout.write(GONE.format(AFTERMATH[hook]))
        return 1
    return int(verdict)


sys.exit(main())
