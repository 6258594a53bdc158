"""The editors' review queue: one pair at a time, judged by two people who do not see what the other said."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from feedback.insights import MIN_NUM
from feedback.review import Reviews
from server.body import body
from server.console.console import ROOT, Console, Me
from server.schema.console import ReviewRequest


def review_router(console: Console, reviews: Reviews) -> APIRouter:
    """/console/review: the next pair, and the verdict on it."""
    router = APIRouter(prefix="/console", tags=["editor"], include_in_schema=False, dependencies=[Depends(console.require_role("editor"))])

    @router.get("/review")
    async def page(request: Request, me: Me) -> Response:
        pair, left, agreement = await reviews.next_for_review(me.name), await reviews.left(me.name), await reviews.agreement()
        return console.render(request, "review.html", pair=pair, left=left, agreement=agreement, min_num=MIN_NUM)

    @router.post("/review")
    async def judge(me: Me, sent: Annotated[ReviewRequest, Depends(body(ReviewRequest))]) -> dict[str, str]:
        """What was said stays out of the audit log too: an admin may be the other rater."""
        await reviews.judge(sent.pair_id, sent.seen, me.name, sent.verdict, sent.reason.strip() or None)
        await console.audit.write(me.name, "pair_judged", sent.pair_id)
        return {"location": f"{ROOT}/review"}

    return router
