"""A real LocalAI that somebody has, with a small backend of ours: llama.cpp and a tiny model.

LocalAI asks its backends over gRPC. Ours takes the prompt and the grammar of a question to
llama.cpp's own server. Protocol Buffers are read and written by hand: a dozen fields do not need
generated code.
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx

from tests.brokers import free_port
from tests.llama_stand import llama_server

VARIABLE = "ROLLOUTD_TEST_LOCALAI"
START_SECONDS = 120.0
QUESTION_SECONDS = 120.0
MODEL_FILE = """
name: tiny
backend: tiny
context_size: 32768
parameters: {model: tiny-random.gguf}
template:
  chat_message: "<|im_start|>{{.RoleName}}\\n{{.Content}}<|im_end|>\\n"
  chat: "{{.Input}}\\n<|im_start|>assistant\\n"
"""
#: Numbers of fields in LocalAI's `PredictOptions`, and its state `READY`.
PROMPT, SEED, TOKENS, TEMPERATURE, GRAMMAR = 1, 2, 4, 9, 29
READY = 2


@contextmanager
def real_localai(directory: Path) -> Iterator[str]:
    """Give the address of a running LocalAI that has the model `tiny`."""
    models, port = directory / "models", free_port()
    models.mkdir()
    (models / "tiny.yaml").write_text(MODEL_FILE)
    (models / "tiny-random.gguf").touch()  # the backend has the model; here only its name counts
    with ExitStack() as stack:
        backend = _serve(stack.enter_context(llama_server(directory)))
        stack.callback(backend.stop, None)
        backend_port = backend.add_insecure_port("127.0.0.1:0")
        backend.start()
        options = {
            "address": f"127.0.0.1:{port}",
            "models-path": models,
            "backends-path": directory / "backends",
            "data-path": directory / "data",
            "localai-config-dir": directory / "configuration",
            "external-grpc-backends": f"tiny:127.0.0.1:{backend_port}",
            "autoload-galleries": "false",
            "autoload-backend-galleries": "false",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        log = stack.enter_context((directory / "localai.log").open("wb"))
        program = stack.enter_context(
            subprocess.Popen(
                [Path(os.environ[VARIABLE]).absolute(), "run", *words, "--disable-web-ui"],
                cwd=directory,
                stdout=log,
                stderr=log,
            )
        )
        stack.callback(program.kill)
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(f"http://127.0.0.1:{port}"):
            said = (directory / "localai.log").read_text(errors="replace")[-2_000:]
            assert program.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _serve(llama_url: str) -> grpc.Server:
    """Return a backend that has what LocalAI needs of one for chat completions."""

    def predict(request: dict[int, Any]) -> bytes:
        options = {
            "prompt": request.get(PROMPT, b"").decode(),
            "n_predict": request.get(TOKENS, -1),
            "temperature": struct.unpack("<f", request.get(TEMPERATURE, bytes(4)))[0],
            "seed": request.get(SEED, 0),
            "grammar": request.get(GRAMMAR, b"").decode(),
        }
        answer = httpx.post(
            f"{llama_url}/completion", json=options, timeout=QUESTION_SECONDS, trust_env=False
        )
        written = answer.raise_for_status().json()
        return (
            _bytes_field(1, written["content"].encode())
            + _number_field(2, written["tokens_predicted"])
            + _number_field(3, written["tokens_evaluated"])
        )

    done = _bytes_field(1, b"OK") + _number_field(2, 1)
    answers: dict[str, Callable[[dict[int, Any]], bytes]] = {
        "Health": lambda _: _bytes_field(1, b"OK"),
        "LoadModel": lambda _: done,
        "Free": lambda _: done,
        "Status": lambda _: _number_field(1, READY),
        "Predict": predict,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            lambda request, _, answer=answer: answer(_fields(request))
        )
        for name, answer in answers.items()
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("backend.Backend", handlers),)
    )
    return server


def _fields(message: bytes) -> dict[int, Any]:
    """Return a message's fields by number: numbers, or the bytes of anything else."""
    fields: dict[int, Any] = {}
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        if key & 7 == 0:
            fields[key >> 3], at = _number(message, at)
            continue
        if key & 7 == 2:
            length, at = _number(message, at)
        else:
            length = {1: 8, 5: 4}[key & 7]
        fields[key >> 3], at = message[at : at + length], at + length
    return fields


def _number(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    head = bytearray()
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
