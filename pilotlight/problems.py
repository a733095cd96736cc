"""Problem documents (RFC 9457): the one table of what can be refused, and with which status."""

from typing import Any, Final

KINDS: Final[dict[str, tuple[int, str]]] = {
    "invalid-request": (400, "The request is not valid"),
    "key-required": (401, "A key is required"),
    "forbidden": (403, "Not allowed"),
    "unknown-function": (404, "There is no such function"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This method is not allowed here"),
    "conflict": (409, "It conflicts with what is there"),
    "gone": (410, "It is no longer kept"),
    "precondition-failed": (412, "The document has changed"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "This media type is not supported here"),
    "build-failed": (422, "The build failed"),
    "overloaded": (429, "Too many requests are waiting"),
    "internal": (500, "Pilotlight has made a mistake"),
    "upgrade-refused": (501, "Protocol upgrades are not supported"),
    "crashed": (502, "The function crashed"),
    "out-of-memory": (502, "The function ran out of memory"),
    "init-failed": (502, "The function failed to start"),
    "unreachable": (502, "The host can't be reached"),
    "no-capacity": (503, "There is no capacity"),
    "unavailable": (503, "A part of the platform is not available"),
    "timeout": (504, "The function took too long"),
}


class Problem(Exception):  # noqa: N818  a refusal is a value that users see, not a fault
    """A refusal that a user will read: a kind from KINDS, and a detail that names cause and remedy.

    `extra` holds further members of the document (`logs`: the last lines the function printed).
    `retry_after` is in seconds, and becomes the header of that name.
    """

    def __init__(self, kind: str, detail: str, *, retry_after: int | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.extra = extra

    def __repr__(self) -> str:
        return f"Problem({self.kind!r}, {self.detail!r})"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind][0]

    def document(self) -> dict[str, Any]:
        """Return the members of the `application/problem+json` document."""
        status, title = KINDS[self.kind]
        return {
            "type": f"urn:pilotlight:problem:{self.kind}",
            "title": title,
            "status": status,
            "detail": self.detail,
            **self.extra,
        }

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the document."""
        headers = {"Content-Type": "application/problem+json", "Pilotlight-Error": self.kind}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.kind == "key-required":
            headers["WWW-Authenticate"] = 'Bearer realm="pilotlight", Basic realm="pilotlight"'
        return headers
