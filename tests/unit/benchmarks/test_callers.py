"""The client that times single calls."""

import socket
import threading

from benchmarks.load import Caller

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_caller_comes_again_where_the_server_has_closed_an_idle_connection() -> None:
    closed = threading.Event()

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(ANSWER)
            closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        caller = Caller(listener.getsockname())
        assert caller.call("/")[2] == 200
        assert closed.wait(10)
        assert caller.call("/")[2] == 200
        caller.close()
        server.join()
