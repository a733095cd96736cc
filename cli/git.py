"""Git on the caller's side: repositories, and where the platform's key is kept for them.

The key lies in a file of its own beside .git/config, readable by its owner alone, which the configuration
includes. So it is in no URL, in no process list, not in what `git remote -v` or a pasted .git/config shows,
and git sends it to this platform's address only (http.URL.extraHeader, git-config(1)).
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from pilotlight.ids import NAME_RULE, is_name
from pilotlight.problems import Problem

REMOTE: Final = "pilotlight"
_KEY_FILE: Final = "pilotlight-key"
_CERTIFICATE_FILE: Final = "pilotlight-certificate.pem"


def run(folder: Path, *words: str) -> str:
    """Run git in a folder and return what it printed. Raises Problem with what it said."""
    done = attempt(folder, *words)
    if done.returncode != 0:
        raise Problem("invalid-request", f"git {words[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def attempt(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run git in a folder. Raises Problem where there is no git."""
    try:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Problem(
            "unavailable", "git is not installed. Install it, such as: apt-get install git"
        ) from error


def top(folder: Path) -> Path:
    """Return the top folder of the repository that folder is in. Raises Problem where there is none."""
    done = attempt(folder, "rev-parse", "--show-toplevel")
    if done.returncode != 0:
        raise Problem(
            "invalid-request",
            f"{folder} is in no git repository. Make one first: git init && git add . && git commit",
        )
    return Path(done.stdout.strip())


def address(platform: str, app: str) -> str:
    """Return the git remote of an app."""
    return f"{platform}/git/{app}.git"


def keep_key(repository: Path, platform: str, key: str, certificate: str | None = None) -> None:
    """Let git send the key to the platform from this repository, and from this one only. Raises Problem.

    `certificate` (PEM) is the one that git shall trust there besides those that it trusts anyhow.
    """
    config = Path(repository, run(repository, "rev-parse", "--git-path", "config"))
    if re.search(r"[^\x21-\x7e]", platform + key) or '"' in platform + key or "\\" in platform + key:
        raise Problem(
            "invalid-request", "The address or the key of the platform has characters that none can have."
        )
    fresh = config.with_name(f"{_KEY_FILE}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f'[http "{platform}/git/"]\n\textraHeader = "Authorization: Bearer {key}"\n')
        if certificate is not None:
            trusted = config.with_name(_CERTIFICATE_FILE)
            trusted.write_text(certificate)
            file.write(f"\tsslCAInfo = {json.dumps(str(trusted.resolve()))}\n")
    fresh.replace(config.with_name(_KEY_FILE))
    if _KEY_FILE not in attempt(repository, "config", "--local", "--get-all", "include.path").stdout.split():
        run(repository, "config", "--local", "--add", "include.path", _KEY_FILE)


def kept_key(repository: Path, platform: str) -> str | None:
    """Return the key that this repository has for the platform, or None."""
    config = Path(repository, run(repository, "rev-parse", "--git-path", "config"))
    file = config.with_name(_KEY_FILE)
    words = ("config", "--file", str(file), "--get", f"http.{platform}/git/.extraHeader")
    return attempt(repository, *words).stdout.strip().rpartition(" ")[2] or None


def app_name(folder_name: str) -> str:
    """Make a valid app name of a folder's. Raises Problem where nothing is left of it."""
    name = re.sub(r"[^a-z0-9]+", "-", folder_name.lower()).lstrip("-0123456789")[:63].rstrip("-")
    if not name:
        raise Problem(
            "invalid-request", f"{folder_name!r} makes no app name. Choose one with --app: {NAME_RULE}."
        )
    return name


def check_app(name: str) -> str:
    """Return an app name that was given. Raises Problem for one that is not valid."""
    if not is_name(name):
        raise Problem("invalid-request", f"{name!r} can't name an app. A name has {NAME_RULE}.")
    return name
