"""Settings of the language model that advises at gates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from controller.settings.section import Count, HttpUrl, Seconds, Section


class AdvisorSettings(Section):
    """The language model that gives advice at gates.

    Any OpenAI-compatible server, LocalAI first, or Ollama.
    """

    url: HttpUrl | None = None
    """Base address before `/v1/chat/completions` or `/api/chat`. None: no model is asked, and plans
    that require advice hold."""
    protocol: Literal["openai", "localai", "ollama"] = "openai"
    """`openai`: chat completions, as llama.cpp's server and vLLM speak. `localai`: the same with a
    grammar in place of a schema, of which LocalAI drops the bounds. `ollama`: its own `/api/chat`,
    whose requests can set the size of the context to load; its OpenAI-compatible address cannot."""
    model: str = Field(default="rolloutd-advisor", min_length=1, max_length=200)
    """Name of the model as the server knows it."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. None: no token is sent."""
    api_key_file: Path | None = None
    """File with the key. None: `api_key` is used."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the server's certificate. None: the system's."""
    certificate_file: Path | None = None
    """PEM file with our client certificate. None: we send none."""
    key_file: Path | None = None
    """PEM file with the key of our certificate, without a password. None: it is in
    `certificate_file`."""
    deadline_seconds: Seconds = 30.0
    """Deadline of the whole call, first byte to last. A small model on a CPU answers in 5 to 20 s;
    bakes are minutes to days."""
    connect_timeout_seconds: Seconds = 2.0
    """Deadline for a new connection. After it the server counts as away."""
    max_answer_bytes: int = Field(default=65_536, ge=1_024, le=10_000_000)
    """A longer answer is cut off and counts as no advice. The default is ten times the longest
    answer that the schema allows."""
    max_tokens: int = Field(default=512, ge=16, le=32_768)
    """Sent to the server as its limit, so that a model that never ends is stopped. The schema's
    answers take 150 to 300. With `localai` the grammar ends an answer, and more is sent where its
    longest one needs more."""
    context_tokens: int = Field(default=4_096, ge=512, le=1_000_000)
    """Size of the context, sent to Ollama, which cuts the head off what does not fit. 2,100 for the
    longest gate question, plus `max_tokens`, plus room."""
    keep_alive: str = Field(default="30m", pattern=r"^(-1|[0-9]+(ms|s|m|h)?)$")
    """Sent to Ollama: how long the model stays in memory after a question. -1: without end. Loading
    takes seconds."""
    concurrency: int = Field(default=1, ge=1, le=64)
    """Questions under way at the same time. A local model answers one at a time anyway."""
    questions_per_day: Count = 2_000
    """Limit per replica and UTC day. Explanations and anomaly checks may use half of it. At 10 s
    each, 2,000 take one CPU 6 h."""
    anomaly_check_interval_seconds: (
        Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] | None
    ) = 900.0
    """Time between two checks of the evidence of all rollouts for unusual changes, by rule and, if
    there is one, by the model. A result is an alert of kind `anomaly`, never an action. None: no
    such checks."""
    breaker_failures: Count = 3
    """Failures in a row after which the model is not asked for a while."""
    breaker_seconds: Seconds = 60.0
    """How long the model is then not asked."""
