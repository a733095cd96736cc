import asyncio


async def handle(request):
    return count(min(int(request.query.get("to", 5)), 100))


async def count(end):
    for number in range(1, end + 1):
        yield f"{number}\n"
        await asyncio.sleep(0.02)
