from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

app = FastAPI(title="Shop")

PRICES = {"apple": 30, "pear": 45}


class Order(BaseModel):
    fruit: str
    count: int = 1


@app.get("/")
def prices() -> dict[str, int]:
    return PRICES


@app.post("/orders", status_code=201)
async def order(order: Order) -> dict[str, int]:
    if order.fruit not in PRICES:
        raise HTTPException(404, f"We have no {order.fruit}.")
    return {"cents": PRICES[order.fruit] * order.count}
