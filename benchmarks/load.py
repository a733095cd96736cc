"""Load on loopback: one timed call, and many from several connections."""

import asyncio
import socket
import time


def request(host: str, path: str) -> bytes:
    """Return a GET request as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


class Caller:
    """One kept-alive connection, as a plain client uses it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, path: str) -> tuple[float, bytes]:
        """Call, and return the seconds until the answer was there, and its head."""
        began = time.perf_counter()
        self._socket.sendall(request("localhost", path))
        answer = b""
        while b"\r\n\r\n" not in answer:
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionError(f"broken off after {answer!r}")
            answer += received
        head, _, body = answer.partition(b"\r\n\r\n")
        length = content_length(head)
        while len(body) < length:
            body += self._socket.recv(65536)
        took = time.perf_counter() - began
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError((head + b"\r\n\r\n" + body).decode())
        return took, head

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def content_length(head: bytes) -> int:
    """Return the content length that the head of an answer names."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def saturate(address: tuple[str, int], path: str, connections: int, seconds: float) -> list[float]:
    """Call from several connections for some seconds; return how long each call took, in seconds."""
    deadline = time.perf_counter() + seconds
    times: list[float] = []
    message = request("localhost", path)

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(*address)
        try:
            while (began := time.perf_counter()) < deadline:
                writer.write(message)
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(head.decode())
                await reader.readexactly(content_length(head))
                times.append(time.perf_counter() - began)
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())
    return times
