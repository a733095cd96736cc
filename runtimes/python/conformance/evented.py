import asyncio
import os

import sync
from pilotlight import AsyncRequest


async def handle(request: AsyncRequest):
    action = request.path.split("/")[1]
    if action == "echo":
        await request.read()
    if action == "duplex":
        return duplex(request)
    if action == "break":
        return broken()
    if action == "wait":
        print("waiting")
        try:
            await asyncio.Event().wait()
        finally:
            print("cancelled")
    if action == "exit":
        os._exit(3)
    return sync.handle(request)


async def duplex(request):
    async for piece in request.stream():
        yield piece.upper()


async def broken():
    yield "begun"
    await asyncio.sleep(0)
    raise ValueError("a secret")
