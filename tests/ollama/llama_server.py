"""llama.cpp's server as Ollama starts it, from the wheel of `tests/llama.lock`.

Ollama builds no engine of its own: it starts `../lib/ollama/llama-server` with the options of
llama.cpp's program. `make ollama` puts this file there; an interpreter with the wheel runs it.
`TINY_MEMORY_BYTES` limits what it may take beyond Python and the wheel, for the test of a machine
with too little memory.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Serve the model that the arguments name until the process is killed."""

    def option(name: str, default: str = "") -> str:
        return arguments[arguments.index(name) + 1] if name in arguments else default

    if "--model" not in arguments:
        return  # asked which devices it has: none but the processor
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = option("--model")
    parameters.n_ctx = int(option("-c", "4096"))
    parameters.n_parallel = int(option("-np", "1"))
    parameters.cpuparams.n_threads = 1  # several would spin while they wait for a core
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(option("--port"))
    parameters.use_jinja = "--no-jinja" not in arguments
    if "--chat-template" in arguments:
        parameters.chat_template = option("--chat-template")
    if more := os.environ.get("TINY_MEMORY_BYTES"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(more)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    server = xllamacpp.Server(parameters)
    while server is not None:
        time.sleep(3_600)


if __name__ == "__main__":
    main(sys.argv[1:])
