import os

from pilotlight import Request, Response


def handle(request: Request):
    action = request.path.split("/")[1]
    if action == "echo":
        return {
            "method": request.method,
            "path": request.path,
            "query": request.query.raw,
            "headers": dict(request.headers),
            "body": request.text,
        }
    if action == "env":
        return dict(os.environ)
    if action == "duplex":
        return (piece.upper() for piece in request.stream())
    if action == "status":
        return Response(None, int(request.path.split("/")[2]), {"X-Seen": "yes"})
    if action == "raise":
        raise ValueError("a secret")
    if action == "unencodable":
        return object()
    if action == "break":
        return broken()
    if action == "exit":
        os._exit(3)
    return "ignored"


def broken():
    yield "begun"
    raise ValueError("a secret")
