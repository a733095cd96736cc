handle = 1


def many(a, b, c, d):
    return a, b, c, d


async def failing(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
