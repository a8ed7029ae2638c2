"""What tritllm adds around transformers' server: a key, the list of models, and the chat page."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tritllm.run.chat_page import PATH, chat_page

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def _error(message: str, code: str) -> dict[str, Any]:
    """As OpenAI's API tells errors."""
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


_NO_KEY = _error(
    "Incorrect API key, or none: send the server's key as 'Authorization: Bearer'.",
    "invalid_api_key",
)
_NO_TEMPLATE = _error(
    "This model has no chat template, so it is no chat model; /v1/completions continues a text "
    "with it.",
    "no_chat_template",
)


class ServedApp:
    """An ASGI application around the server's own.

    Args:
        app: the application that answers.
        model: the served folder or Hub id, as requests name it and `/v1/models` lists it.
        api_key: what requests must send as a bearer token, but for /health and the page, which
            asks for it; None asks for none.
        chats: whether the model has a chat template; without one, chat completions are refused in
            words, where transformers' server would answer with an internal error.
    """

    def __init__(self, app: App, model: str, api_key: str | None, *, chats: bool = True) -> None:
        self._app, self._api_key, self._chats = app, api_key, chats
        listed = {
            "id": model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "tritllm",
        }
        self._models = {"object": "list", "data": [listed]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http":
            reads = scope["method"] in ("GET", "HEAD")
            if reads and scope["path"] == PATH:
                await _send(send, 200, *chat_page())
                return
            if not self._is_allowed(scope):
                await _answer(send, 401, _NO_KEY, (b"www-authenticate", b"Bearer"))
                return
            if reads and scope["path"] == "/v1/models":
                await _answer(send, 200, self._models)
                return
            if not self._chats and scope["path"] == "/v1/chat/completions":
                await _answer(send, 400, _NO_TEMPLATE)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._api_key is None or scope["path"] == "/health":
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        # In constant time, so that a key cannot be guessed letter by letter.
        same = hmac.compare_digest(token.strip(), self._api_key.encode())
        return same and scheme.lower() == b"bearer"


async def _answer(send: Send, status: int, body: Any, *headers: tuple[bytes, bytes]) -> None:
    kind = (b"content-type", b"application/json")
    await _send(send, status, json.dumps(body).encode(), (kind, *headers))


async def _send(
    send: Send, status: int, data: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    """A whole response; uvicorn leaves the body out where only the head was asked for."""
    length = (b"content-length", b"%d" % len(data))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": data})
