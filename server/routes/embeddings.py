"""`POST /v1/embeddings`: the embedder, for clients that hold a key."""

import base64
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from backends.protocol import ContextTooLong
from server.auth import KeyRing, require_key
from server.body import body
from server.embedder import Embedder
from server.errors import InvalidRequest, ModelNotFound, NotFound
from server.limits import InFlight
from server.routes.jobs import name_ignored
from server.schema.openai import EmbeddingRequest
from server.settings import ServerSettings
from server.sse import CLIENT_CLOSED_REQUEST, HungUp, until_hang_up

EmbeddingBody = Annotated[EmbeddingRequest, Depends(body(EmbeddingRequest))]


def embeddings_router(embedder: Embedder | None, ring: KeyRing, settings: ServerSettings) -> APIRouter:
    """The vectors of texts as they stand: what a model wants to read before a question is the caller's to write."""
    router, in_flight = APIRouter(prefix="/v1", tags=["key"]), InFlight(settings.max_in_flight)

    @router.post("/embeddings")
    async def create_embeddings(http: Request, key_id: Annotated[str, Depends(require_key(ring))], asked: EmbeddingBody) -> Response:
        if embedder is None:
            raise NotFound("no embedding model is loaded here; knowledge.embedding_model names one", code="no_embedding_model")
        if asked.model != embedder.client.spec.name:
            raise ModelNotFound(f"the embedding model here is {embedder.client.spec.name}", param="model")
        unread = asked.model_extra or {}
        headers = name_ignored(unread, unread if settings.strict else ())
        try:
            with in_flight.held(key_id):
                rows, num_tokens = await until_hang_up(http.receive, embedder.embed(asked.input))
        except ContextTooLong as error:
            raise InvalidRequest(str(error), param="input", code="context_length_exceeded") from error
        except HungUp:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        is_base64 = asked.encoding_format == "base64"
        vectors = [base64.b64encode(row.astype("<f4")).decode() if is_base64 else row.tolist() for row in rows]
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        whole = {"object": "list", "data": data, "model": asked.model, "usage": usage}
        return Response(msgspec.json.encode(whole), media_type="application/json", headers=headers)

    return router
