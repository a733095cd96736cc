"""What `up` tells systemd, where that has started it and waits for it to serve (sd_notify(3))."""

import socket

from pilotlight.settings import notify_socket


def tell(state: str) -> None:
    """Send a state such as READY=1; do nothing where nobody waits. Raises OSError."""
    path = notify_socket()
    if path is None:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)
