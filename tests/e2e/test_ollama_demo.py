"""The demo's gates with a real Ollama: one that holds, one that proceeds. `make ollama` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.demo.scenarios import SCENARIOS, plan_of
from schemas.decision import Decision
from tests.ollama_stand import Ollama

ROLLOUTD = Path(sys.executable).with_name("rolloutd")
LONGEST_SECONDS = 400
#: A byte is a token of these models: a gate question takes 4,000.
CONTEXT_TOKENS = 8_192

pytestmark = pytest.mark.one_worker


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    """A running Ollama with a model for each verdict.

    Each likes one letter best, and so takes the verdict that begins with it.
    """
    with Ollama(tmp_path_factory.mktemp("ollama")) as server:
        server.create("holds", favored="h", num_ctx=CONTEXT_TOKENS)
        server.create("proceeds", favored="p", num_ctx=CONTEXT_TOKENS)
        yield server


def play(ollama: Ollama, model: str, protocol: str, *options: str) -> str:
    """Return what the demo prints with this model."""
    words = ["--advisor-url", ollama.url, "--advisor-model", model, "--advisor-protocol", protocol]
    demo = subprocess.run(
        [str(ROLLOUTD), "demo", *words, *options],
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    return demo.stdout


def test_a_real_model_holds_the_demo(ollama: Ollama) -> None:
    """Held twice, a person is asked at 1 %, and the last line says so: nothing was completed."""
    said = " ".join(play(ollama, "holds", "openai").split())
    assert "a person is asked, in stage 1" in said
    assert "Advice in the decisions: hold" in said
    assert "OK, held by the model: a person decides. Without its advice: completed" in said
    assert "as expected" not in said


def test_a_real_model_lets_the_demo_proceed(ollama: Ollama) -> None:
    """Every gate is asked, every answer is `proceed`, and the rollout completes."""
    *decisions, document = map(
        json.loads, play(ollama, "proceeds", "openai", "--json").splitlines()
    )
    assert document["phase"]["name"] == "completed"
    gates = [
        Decision.model_validate_json(json.dumps(decision))
        for decision in decisions
        if decision["kind"] in ("advance", "complete")
    ]
    assert len(gates) == len(plan_of(SCENARIOS["healthy"]).stages)
    for gate in gates:
        assert gate.advice is not None, gate.reason
        assert (gate.advice.choice, gate.advice.model) == ("proceed", "proceeds")
        assert gate.advice.server == ollama.url
