"""The demo shop's orders: a small HTTP service inside this process, seeded at every start, in words that kefu-mini was trained to read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Literal

from fastapi import Body, FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse

State = Literal["processing", "shipped", "delivered", "cancelled"]
# What the date of an order in this state says.
DATED: dict[State, str] = {"processing": "ships_on", "shipped": "expected", "delivered": "delivered_on"}
# Number, state, and the day counted from today.
SEEDS: tuple[tuple[str, State, int], ...] = (
    ("K12345", "shipped", 2),
    ("QK-40021", "processing", 3),
    ("B8830", "delivered", -4),
    ("TM556021", "processing", 1),
    ("R7719", "cancelled", 0),
)


@dataclass(slots=True)
class Order:
    state: State
    day: date


class Refused(HTTPException):
    """`detail` is the whole body."""


def demo_orders(today: date) -> FastAPI:
    """The service, with orders of its own."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    orders, booked = {number: Order(state, today + timedelta(days)) for number, state, days in SEEDS}, set[object]()

    @app.exception_handler(Refused)
    async def refused(request: object, error: Refused) -> JSONResponse:
        return JSONResponse(error.detail, error.status_code)

    @app.get("/orders/{order_id}")
    async def get_order(order_id: str, accept_language: Annotated[str, Header()] = "en") -> dict[str, str]:
        order = _find(orders, order_id)
        dated = {DATED[order.state]: _said(order.day, accept_language)} if order.state in DATED else {}
        return {"order_id": order_id, "status": order.state, **dated}

    @app.post("/orders/{order_id}/cancel")
    async def cancel_order(order_id: str) -> dict[str, str]:
        _unshipped(orders, order_id).state = "cancelled"
        return {"order_id": order_id, "status": "cancelled"}

    @app.put("/orders/{order_id}/address")
    async def change_address(order_id: str, address: Annotated[str, Body(embed=True)]) -> dict[str, str]:
        _unshipped(orders, order_id)
        return {"order_id": order_id, "address": address}

    @app.post("/callbacks")
    async def book_callback(phone: Annotated[str, Body()], time: Annotated[str, Body()]) -> dict[str, object]:
        if time in booked:
            raise Refused(409, {"error": "no free slot"})
        booked.add(time)
        return {"phone": phone, "time": time, "booked": True}

    return app


def _find(orders: Mapping[str, Order], order_id: str) -> Order:
    if (order := orders.get(order_id.upper())) is None:
        raise Refused(404, {"order_id": order_id, "error": "not found"})
    return order


def _unshipped(orders: Mapping[str, Order], order_id: str) -> Order:
    order = _find(orders, order_id)
    if order.state in ("shipped", "delivered"):
        raise Refused(409, {"order_id": order_id, "error": "already shipped"})
    return order


def _said(day: date, language: str) -> str:
    return f"{day.month} 月 {day.day} 日" if language.startswith("zh") else f"{day.day} {day:%B}"
