import asyncio
import json
import os


def wsgi(environ, start_response):
    path = environ["RAW_URI"].partition("?")[0]
    action = path.split("/")[1]
    body = environ["wsgi.input"]
    if action == "echo":
        headers = {name[5:].lower().replace("_", "-"): v for name, v in environ.items() if name.startswith("HTTP_")}
        content = json.dumps(
            {
                "method": environ["REQUEST_METHOD"],
                "path": path,
                "query": environ["QUERY_STRING"],
                "headers": headers,
                "body": body.read().decode(),
            }
        ).encode()
    elif action == "env":
        content = json.dumps(dict(os.environ)).encode()
    elif action == "status":
        start_response(f"{path.split('/')[2]} Fine", [("X-Seen", "yes")])
        return []
    elif action == "raise":
        raise ValueError("a secret")
    elif action == "exit":
        os._exit(3)
    elif action == "duplex":
        start_response("200 OK", [])
        return (piece.upper() for piece in iter(lambda: body.read1(65536), b""))
    elif action == "break":
        start_response("200 OK", [("Content-Length", "100")])
        return broken()
    else:
        content = b"ignored"
    start_response("200 OK", [("Content-Length", str(len(content)))])
    return [content]


def broken():
    yield b"begun"
    raise ValueError("a secret")


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["started"] = True
        await send({"type": "lifespan.startup.complete"})
        await receive()
    path = scope["raw_path"].decode()
    action = path.split("/")[1]
    assert scope["state"]["started"]

    async def start(status=200, headers=()):
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-seen", b"yes"), *headers]})

    if action == "echo":
        content = json.dumps(
            {
                "method": scope["method"],
                "path": path,
                "query": scope["query_string"].decode(),
                "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
                "body": b"".join([piece async for piece in pieces(receive)]).decode(),
            }
        ).encode()
        await start()
        await send({"type": "http.response.body", "body": content})
    elif action == "env":
        await start()
        await send({"type": "http.response.body", "body": json.dumps(dict(os.environ)).encode()})
    elif action == "status":
        await start(int(path.split("/")[2]))
        await send({"type": "http.response.body"})
    elif action == "raise":
        raise ValueError("a secret")
    elif action == "exit":
        os._exit(3)
    elif action == "duplex":
        await start()
        async for piece in pieces(receive):
            await send({"type": "http.response.body", "body": piece.upper(), "more_body": True})
        await send({"type": "http.response.body"})
    elif action == "break":
        await start()
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError("a secret")
    elif action == "wait":
        print("waiting")
        while (await receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)
        print("cancelled")
    else:
        await start()
        await send({"type": "http.response.body", "body": b"ignored"})


async def pieces(receive):
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        if message["body"]:
            yield message["body"]
