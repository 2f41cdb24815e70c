"""A language model of 119,000 random numbers in llama.cpp's own server.

The protocol is real, the answers are chance.

`python -m tests.tiny_model DIRECTORY` writes the model there, serves it and prints `url=http://...`
when it is ready; it runs until its standard input ends. In a process of its own, because the server
logs, spawns threads and may abort the process. With `--write FILE [LETTER]` it only writes the
model; LETTER is the one that it likes best. Needs the packages of `tests/llama.lock`, which nothing
else needs: `make llama` installs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH, HEADS, LAYERS, INNER = 288, 64, 4, 2, 128
CONTEXT_TOKENS = 32_768  # a byte is a token here: a gate question takes 4,000
CONTROL_TOKENS = ("<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>")
FIRST_CONTROL = 256
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(path: Path, favored: str = "") -> None:
    """Write a GGUF file with a byte-level tokenizer; the same bytes each time.

    Printable bytes, letters, quotes and the ends of an object are made likelier by a constant
    channel, so that answers within a grammar end soon. The letter `favored` comes before all other
    letters: where an answer chooses between words, it takes the one that begins with it.
    """
    import gguf
    import numpy as np

    chance = np.random.default_rng(7)
    tokens, types = _vocabulary(gguf.TokenType)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{_letter_of(32)} t"])  # llama.cpp refuses a tokenizer without any
    writer.add_bos_token_id(FIRST_CONTROL)
    writer.add_eos_token_id(FIRST_CONTROL + CONTROL_TOKENS.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    def numbers(*shape: int, spread: float = 0.02) -> Any:
        return (chance.standard_normal(shape) * spread).astype(np.float32)

    likelier = np.zeros(VOCABULARY, np.float32)
    likelier[32:127] = 1
    likelier[ord("a") : ord("z") + 1] = 1.7
    likelier[ord('"')], likelier[ord("}")], likelier[FIRST_CONTROL + 3] = 4, 2.5, 2
    if favored:
        likelier[ord(favored)] = 3
    embedding, output = numbers(VOCABULARY, WIDTH), numbers(VOCABULARY, WIDTH, spread=0.05)
    embedding[:, 0] = 1
    output[:, 0] = likelier / 8
    ones = np.ones(WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", numbers(WIDTH, WIDTH))
        for name, shape in (
            ("ffn_gate", (INNER, WIDTH)),
            ("ffn_up", (INNER, WIDTH)),
            ("ffn_down", (WIDTH, INNER)),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", numbers(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _letter_of(byte: int) -> str:
    """Return the letter that GPT-2's byte alphabet writes a byte as."""
    kept = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [each for each in range(256) if each not in kept]
    return chr(byte) if byte in kept else chr(256 + rest.index(byte))


def _vocabulary(kinds: Any) -> tuple[list[str], list[Any]]:
    tokens = (
        [_letter_of(byte) for byte in range(256)] + list(CONTROL_TOKENS) + [f"{_letter_of(32)}t"]
    )
    types = [kinds.NORMAL] * 256 + [kinds.CONTROL] * len(CONTROL_TOKENS) + [kinds.NORMAL]
    while len(tokens) < VOCABULARY:
        tokens.append(f"<|unused{len(tokens)}|>")
        types.append(kinds.UNUSED)
    return tokens, types


def serve(directory: Path) -> None:
    """Serve the model on a free port of loopback until standard input ends."""
    import xllamacpp

    path = directory / "tiny-random.gguf"
    write_model(path)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1  # several would spin while they wait for a core
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"\nurl={server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write_model(Path(sys.argv[2]), "".join(sys.argv[3:]))
    else:
        serve(Path(sys.argv[1]))
