"""How the commands talk to the platform: HTTP, with nothing but the standard library, to be quick."""

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from pilotlight.datafolder import DataFolder
from pilotlight.problems import KINDS, Problem
from pilotlight.settings import current, named_platform

if TYPE_CHECKING:
    import ssl

_TIMEOUT = 60.0
_START_IT = "Start it with: pilotlight up"


class Platform:
    """A platform at an address, with the key that we have for it."""

    def __init__(self, url: str, key: str | None, certificate: str | None = None) -> None:
        """`certificate` (PEM) is the one to expect, whatever name it is for: that of this machine's platform.

        Raises Problem for an address that does not parse.
        """
        self.url = url.rstrip("/")
        self.key = key
        self.certificate = certificate
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Problem(
                "invalid-request",
                f"PILOTLIGHT_URL is {url!r}; write it like http://127.0.0.1:8080",
            )
        self._parts = parts

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = _TIMEOUT,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and yield the response, whatever its status. Raises Problem when nobody answers."""
        connection = self._connection(timeout)
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            connection.request(method, self._parts.path + path, body, {**key, **(headers or {})})
            response = connection.getresponse()
        except TimeoutError as error:
            connection.close()
            raise Problem("unavailable", f"{self.url} did not answer within {timeout:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            why = getattr(error, "verify_message", None)  # of an SSLCertVerificationError
            if why is not None:
                detail = f"The certificate of {self.url} is not accepted: {why}."
                remedy = (
                    "Have this machine trust who has issued it, or name the platform as the certificate does."
                )
                raise Problem("unavailable", f"{detail} {remedy}") from error
            raise Problem(
                "unavailable", f"Nothing answers at {self.url} ({error}). {_START_IT}, or set PILOTLIGHT_URL."
            ) from error
        try:
            yield response
        finally:
            connection.close()

    def _connection(self, timeout: float | None) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        context = self.tls()
        if context is None:
            return http.client.HTTPConnection(host, port, timeout=timeout)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)

    def tls(self) -> "ssl.SSLContext | None":
        """Return how connections are encrypted; None where they are not."""
        if self._parts.scheme == "http":
            return None
        import ssl

        context = ssl.create_default_context(cadata=self.certificate)
        # Set from Python 3.13 on, it refuses what curl and git take: authorities without key usage
        context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
        if self.certificate is not None:
            context.check_hostname = False
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        return context

    def call(self, method: str, path: str, value: Any = None) -> Any:
        """Call the control API and return what its JSON says; None for 204. Raises Problem."""
        body = None if value is None else json.dumps(value).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        with self.request(method, path, body, headers) as response:
            text = response.read()
            if response.status >= 400:
                raise refusal(response, text)
            return json.loads(text) if text else None

    def get(self, path: str) -> Any:
        """Call the control API with GET."""
        return self.call("GET", path)


def refusal(response: http.client.HTTPResponse, text: bytes) -> Problem:
    """Return the Problem that an answer of the platform stands for."""
    try:
        document = json.loads(text)
        detail = str(document["detail"])
    except (ValueError, KeyError, TypeError):
        document, detail = {}, f"The platform answered {response.status} {response.reason}."
    if response.status in (401, 403):
        whence = "The key was that of PILOTLIGHT_KEY."
        if named_platform().key is None:
            whence = (
                "Commands take the key from PILOTLIGHT_KEY, else from admin.key in the data folder "
                f"({current().data}), which its owner alone may read."
            )
        detail = f"{detail.rstrip('.')}. {whence}"
    kind = response.headers.get("Pilotlight-Error", "")
    return Problem(kind if kind in KINDS else "internal", detail, logs=document.get("logs", []))


def find() -> Platform:
    """Find the platform: by PILOTLIGHT_URL and PILOTLIGHT_KEY, else by this user's data folder.

    Raises Problem where there is none.
    """
    named = named_platform()
    data = DataFolder(current().data)
    here, certificate = _address(data)
    url = named.url or here
    if url is None:
        raise Problem(
            "unavailable",
            f"No platform runs on the data folder {data.root}. {_START_IT} (or name one with PILOTLIGHT_URL "
            "and PILOTLIGHT_KEY, or its data folder with PILOTLIGHT_DATA).",
        )
    if url.rstrip("/") != here:
        return Platform(url, named.key)  # the key of this machine's platform is sent to no other address
    return Platform(url, named.key or _admin_key(data), certificate)


def _address(data: DataFolder) -> tuple[str | None, str | None]:
    """Return the address of the platform that runs on a data folder, and its certificate, or None."""
    try:
        told = json.loads(data.platform.read_text())
        return str(told["url"]), told.get("certificate")
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError) as error:
        raise Problem("unavailable", f"{data.platform} can't be read ({error}).") from error


def _admin_key(data: DataFolder) -> str | None:
    """Return the first key, where this user may read it; the platform tells when one is missing."""
    try:
        return data.admin_key.read_text().strip()
    except OSError:
        return None


def path(*segments: str) -> str:
    """Return a path of the control API, its segments encoded."""
    return "/".join(("/api/v1", *(quote(segment, safe="") for segment in segments)))
