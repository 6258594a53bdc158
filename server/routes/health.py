"""Is it alive, is it ready, and how is it doing."""

from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Response

from server.auth import KeyRing, require_key
from server.metrics import Metrics
from server.middleware import Traffic


class Readiness(Protocol):
    """What knows whether tokens are being decoded."""

    async def check(self) -> str:
        """Why no request should come now; empty when one may."""


def health_router(engine: Readiness, traffic: Traffic, metrics: Metrics, ring: KeyRing) -> APIRouter:
    """`/health/live`: the process answers. `/health/ready`: so would the model. `/metrics`: for Prometheus, with a key."""
    router = APIRouter()

    @router.get("/health/live", tags=["public"])
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/health/ready", tags=["public"])
    async def ready(response: Response) -> dict[str, str]:
        reason = "shutting down" if traffic.is_draining else await engine.check()
        if reason:
            response.status_code = 503
            return {"status": "not ready", "reason": reason}
        return {"status": "ready"}

    @router.get("/metrics", tags=["key"])
    async def prometheus(key_id: Annotated[str, Depends(require_key(ring))]) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    return router
