"""The event that an app emits at the end of a request: its result, duration and conversions.

Attribute names are OpenTelemetry's where it has one (HTTP server conventions, stable); two are
ours: the flags that were evaluated during the request, and the conversions. Attributes that are not
listed here are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from schemas.envelope import MAX_ATTRIBUTE, ContextId, Name

TYPE = "io.rolloutd.outcome.v1"

#: Flags one request may name; more than any real request evaluates.
MAX_FLAGS = 64
#: Conversions one request may report.
MAX_CONVERSIONS = 16
#: A day: longer is a clock error or a wrong unit (milliseconds sent as seconds).
MAX_DURATION_SECONDS = 86_400


def _informative(**schema: Any) -> dict[str, Any]:
    return {
        "description": "Recommended by OpenTelemetry; not read by rolloutd, "
        "never a reason to refuse.",
        **schema,
    }


#: The attributes that are read, with their types. One is needed: an object without any is no
#: outcome, but would pass as a success.
READ_ATTRIBUTES = {
    "feature_flag.context.id": "string",
    "http.server.request.duration": "number",
    "error.type": "string",
    "rolloutd.flags": "array",
    "rolloutd.conversions": "array",
}
NOTHING_KNOWN = f"none of {', '.join(READ_ATTRIBUTES)}"
_HAS_ONE: list[JsonValue] = [
    {"required": [name], "properties": {name: {"type": kind}}}
    for name, kind in READ_ATTRIBUTES.items()
]


class EvaluatedFlag(BaseModel):
    """A flag that was evaluated during the request, and the variant that was served."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", defer_build=True)

    flag_key: Name = Field(alias="feature_flag.key")
    variant: Name = Field(alias="feature_flag.result.variant")


class Outcome(BaseModel):
    """What happened to one request. One of the attributes that are read is needed."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", json_schema_extra={"anyOf": _HAS_ONE}
    )

    context_id: ContextId | None = Field(
        default=None,
        alias="feature_flag.context.id",
        description="The targeting key. Absent: the Kafka record's key, which it must equal "
        "anyway.",
    )
    duration_seconds: float | None = Field(
        default=None,
        alias="http.server.request.duration",
        ge=0,
        le=MAX_DURATION_SECONDS,
        allow_inf_nan=False,
        description="Seconds.",
    )
    error_type: str | None = Field(
        default=None,
        alias="error.type",
        min_length=1,
        max_length=MAX_ATTRIBUTE,
        description="Why the request failed: a status code as text, an exception's name or _OTHER. "
        "Absent: it succeeded.",
    )
    flags: (
        Annotated[tuple[EvaluatedFlag, ...], Field(max_length=MAX_FLAGS, strict=False)] | None
    ) = Field(
        default=None,
        alias="rolloutd.flags",
        description="The flags evaluated in the request. Absent or empty: joined by context to its "
        "last evaluations.",
    )
    conversions: (
        Annotated[tuple[Name, ...], Field(max_length=MAX_CONVERSIONS, strict=False)] | None
    ) = Field(
        default=None,
        alias="rolloutd.conversions",
        description="What the request led to, such as `checkout`.",
    )
    status_code: Any = Field(
        default=None,
        alias="http.response.status_code",
        json_schema_extra=_informative(type=["integer", "null"], minimum=100, maximum=599),
    )
    route: Any = Field(
        default=None, alias="http.route", json_schema_extra=_informative(type=["string", "null"])
    )
    method: Any = Field(
        default=None,
        alias="http.request.method",
        json_schema_extra=_informative(type=["string", "null"]),
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        fields = type(self).model_fields.items()
        read = [getattr(self, name) for name, field in fields if field.alias in READ_ATTRIBUTES]
        if all(value is None for value in read):
            raise ValueError(f"{NOTHING_KNOWN}; send at least the context id")
        return self
