"""Tells the company's own system (mail, pager, chat) that a customer waits for a person: ids and times, never what was said."""

import asyncio
import hashlib
import hmac
import json
import logging
import time

import httpx

from feedback.inbox import Reason
from server.settings import DeskSettings

log = logging.getLogger("kefu.notify")

RETRY_AFTER_S = (1.0, 5.0, 25.0)
TIMEOUT_S = 5.0


def signature(key: str, sent_at: str, body: bytes) -> str:
    """What the receiver computes again: HMAC-SHA256 over time, dot and body, in hex. An old time is somebody's replay."""
    return "sha256=" + hmac.new(key.encode(), sent_at.encode() + b"." + body, hashlib.sha256).hexdigest()


class Notifier:
    """POSTs to `desk.notify_url`, each call in a task of its own; a receiver that stays away is given up after four tries."""

    def __init__(self, settings: DeskSettings) -> None:
        self._url = settings.notify_url
        self._key = settings.notify_key.get_secret_value()
        self._tasks: set[asyncio.Task[None]] = set()

    def waiting(self, conversation_id: str, reason: Reason) -> None:
        """A customer waits."""
        if self._url:
            task = asyncio.create_task(self._tell({"event": "waiting", "conversation_id": conversation_id, "reason": reason}))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tell(self, event: dict[str, str]) -> None:
        body = json.dumps(event).encode()
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            for pause_s in (*RETRY_AFTER_S, None):
                if await self._is_told(client, body):
                    return
                if pause_s is not None:
                    await asyncio.sleep(pause_s)
        log.error("desk.notify_url took no notice of a waiting customer")

    async def _is_told(self, client: httpx.AsyncClient, body: bytes) -> bool:
        sent_at = str(int(time.time()))
        headers = {"content-type": "application/json", "x-kefu-time": sent_at}
        if self._key:
            headers["x-kefu-signature"] = signature(self._key, sent_at, body)
        try:
            reply = await client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            log.warning("desk.notify_url: %s", type(error).__name__)
            return False
        return reply.is_success
