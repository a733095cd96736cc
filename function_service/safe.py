"""The safe: seals the secrets before they are stored, and opens them at the start.

AES-256-GCM, with the secret's name as associated data, so that nobody can pass one off as another. The
package that does it takes a while to import, which is left until there is a secret.
"""

import base64
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotlight import key_file
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE: Final = 12  # bytes, random for each sealing


class Safe:
    """Holds the key, which lies in a file, 32 bytes in base64."""

    def __init__(self, path: Path, *, ours: bool) -> None:
        """`ours`: the file is made where it is missing and nothing was sealed so far."""
        self._path = path
        self._ours = ours
        self._key = b""

    def unlock(self, sealed: Mapping[str, bytes]) -> dict[str, str]:
        """Read the key, and return what was sealed, by name. It blocks.

        Raises Problem `unavailable` where the file is missing, is no key, or is another one than was used.
        """
        try:
            self._key = key_file.read(self._path, "secrets")
        except FileNotFoundError:
            if sealed:
                raise _unreadable(sealed, f"{self._path} is missing") from None
            if not self._ours:
                detail = f"{self._path} is missing. {key_file.made_by(self._path)}"
                raise Problem("unavailable", detail) from None
            self._key = self._made()
            return {}
        opened = {name: self._open(name, box) for name, box in sealed.items()}
        wrong = [name for name, value in opened.items() if value is None]
        if wrong:
            raise _unreadable(wrong, f"{self._path} is not the key that they were encrypted with")
        return {name: value for name, value in opened.items() if value is not None}

    def seal(self, name: str, value: str) -> bytes:
        """Encrypt a secret: the nonce, then what AES-GCM makes. It blocks at the first time."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, value.encode("utf-8", "surrogatepass"), name.encode())

    def _open(self, name: str, box: bytes) -> str | None:
        """Decrypt a secret; None where it was not sealed with this key and under this name."""
        from cryptography.exceptions import InvalidTag

        try:
            value = self._cipher.decrypt(box[:_NONCE], box[_NONCE:], name.encode())
        except (InvalidTag, ValueError):
            return None
        return value.decode("utf-8", "surrogatepass")

    @cached_property
    def _cipher(self) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._key)

    def _made(self) -> bytes:
        """Make the key, on the disk before anything is sealed with it."""
        key = os.urandom(key_file.SIZE)
        fresh = self._path.with_name(
            f"{self._path.name}.new"
        )  # what a killed start has left of one is nothing
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return key


def _unreadable(names: "list[str] | Mapping[str, bytes]", reason: str) -> Problem:
    return Problem(
        "unavailable",
        f"These secrets can't be read: {', '.join(sorted(names))}. {reason}. Bring the right file "
        "back, such as from a backup, or name it with --secrets-key. If it is lost for good, so are they: "
        "`pilotlight secrets discard` forgets them, so that they can be set anew.",
    )
