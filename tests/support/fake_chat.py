"""A chat endpoint that answers as transformers' server does, piece by piece, as a test says."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


class FakeChat:
    """What is to be answered, and what was asked.

    pieces: of the next answers; None in it waits until the client has gone away, after which `left`
    is set. fails: a response instead of an answer. asked: the bodies of requests.
    """

    def __init__(self) -> None:
        self.pieces: list[str | None] = []
        self.fails: Response | None = None
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/health", lambda request: PlainTextResponse("ok")),
            ]
        )

    async def _answer(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.fails is not None:
            return self.fails
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        for piece in self.pieces:
            if piece is None:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.set()
            yield _event({"choices": [{"delta": {"content": piece}}]})
        usage = {"completion_tokens": len(self.pieces)}
        yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage})
        yield "data: [DONE]\n\n"


def _event(body: Any) -> str:
    return f"data: {json.dumps(body)}\n\n"


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Address of an ASGI application on a free port of this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
