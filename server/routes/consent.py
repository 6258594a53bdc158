"""What a customer lets be done with a conversation."""

from typing import Annotated

from fastapi import APIRouter, Depends

from feedback.record import Record
from server.body import body
from server.desk.visitors import Visitors
from server.routes.desk import require_visitor
from server.schema.desk import ConsentRequest


def consent_router(record: Record, visitors: Visitors) -> APIRouter:
    """One route, called by a visitor about a conversation of theirs."""
    router = APIRouter(prefix="/desk/conversations/{conversation_id}", tags=["visitor"])

    @router.post("/consent")
    async def consent(
        conversation_id: str,
        visitor_id: Annotated[str, Depends(require_visitor(visitors))],
        sent: Annotated[ConsentRequest, Depends(body(ConsentRequest))],
    ) -> ConsentRequest:
        """Whether this conversation may train a model: on disk before the reply, and heeded by the next export."""
        await record.set_consent(conversation_id, visitor_id, consent_train=sent.train)
        return sent

    return router
