"""Stand-ins for a model's server on loopback: one answers from a script, one never answers.

Neither is a model, and the demo says so wherever it shows their answers. They speak OpenAI's chat
completions, so that the daemon's own adapter is used.
"""

from __future__ import annotations

import asyncio
import json

from controller.demo.store import LOOPBACK

MODEL = "scripted-stand-in"
_REASONS = (
    "I am a script, not a model.",
    "I answer hold to every question, to show what an objection does.",
)


class StandIn:
    """A server, as an async context manager.

    With `answers` False it accepts every question and never answers.
    """

    def __init__(self, *, answers: bool) -> None:
        self._answer = (
            json.dumps({"reasons": list(_REASONS), "verdict": "hold", "confidence": 100})
            if answers
            else None
        )
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> StandIn:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.url = f"http://{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._talk(reader, writer), name="stand-in")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _read_request(reader)
            if self._answer is None:
                await asyncio.Event().wait()
            writer.write(_completion(self._answer or ""))
            await writer.drain()
        except (OSError, EOFError, ValueError):
            pass  # the daemon went away or sent no request
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> None:
    """Read one request to its end, so that the client is not cut off while it still writes."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lengths = [
        line.partition(":")[2]
        for line in head.split("\r\n")
        if line.lower().startswith("content-length:")
    ]
    await reader.readexactly(int(lengths[0]) if lengths else 0)


def _completion(content: str) -> bytes:
    message = {"role": "assistant", "content": content}
    body = json.dumps(
        {
            "id": "chatcmpl-stand-in",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    ).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
        f"{len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
