"""A program that runs another one as the user of the services, where this one is root: `FOLDER… -- COMMAND…`.

What lies in repositories was written by that user, and by whoever pushes: root's git must not act upon it.
"""

import os
import sys
from pathlib import Path

from pilotlight import privileges


def main() -> None:
    """Become that user, to whom the folders stay reachable and writable, and then the command."""
    at = sys.argv.index("--")
    folders, command = sys.argv[1:at], sys.argv[at + 1 :]
    privileges.drop(privileges.SERVICE_UID, keep=map(Path, folders))
    os.execvp(command[0], command)  # noqa: S606  there is no shell on purpose


if __name__ == "__main__":
    main()
