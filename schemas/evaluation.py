"""The event that an app emits after it evaluates a flag: this context was served that variant.

Attribute names are those of the OpenTelemetry semantic conventions 1.44
(`feature_flag.evaluation`); their deprecated predecessors, which many SDKs still emit, are read as
well. Attributes that are not listed here are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

from schemas.envelope import ContextId, Name, is_name
from schemas.terms import NAME_PATTERN

TYPE = "io.rolloutd.evaluation.v1"

_INFORMATIVE = {
    "description": "Recommended by OpenTelemetry; not read by rolloutd, never a reason to refuse."
}


def _deprecated(successor: str) -> dict[str, Any]:
    return {
        "deprecated": True,
        "description": f"Deprecated name of `{successor}`; read where that is absent.",
    }


def _text() -> dict[str, Any]:
    return {**_INFORMATIVE, "type": ["string", "null"]}


def _named_by(name: str, types: list[JsonValue]) -> JsonValue:
    return {"required": [name], "properties": {name: {"type": types, "pattern": NAME_PATTERN}}}


_HAS_A_VARIANT: list[JsonValue] = [
    _named_by("feature_flag.result.variant", ["string"]),
    _named_by("feature_flag.result.value", ["string", "boolean"]),
    _named_by("feature_flag.variant", ["string"]),
    _named_by("value", ["string", "boolean"]),
]

#: It must be a name only when it is the attribute that names the variant.
_VariantText = Annotated[str, WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]


class Evaluation(BaseModel):
    """A flag evaluation. One of variant, value or their deprecated names is needed."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        defer_build=True,
        json_schema_extra={"anyOf": _HAS_A_VARIANT},
    )

    flag_key: Name = Field(alias="feature_flag.key", description="The flag that was evaluated.")
    result_variant: _VariantText | None = Field(
        default=None,
        alias="feature_flag.result.variant",
        description="The variant that was served.",
    )
    result_value: Any = Field(
        default=None,
        alias="feature_flag.result.value",
        description="The value that was served; names the variant where none is given: true, "
        "false, or the text itself.",
    )
    context_id: ContextId | None = Field(
        default=None,
        alias="feature_flag.context.id",
        description="The targeting key. Absent: the Kafka record's key, which it must equal "
        "anyway.",
    )
    old_variant: _VariantText | None = Field(
        default=None,
        alias="feature_flag.variant",
        json_schema_extra=_deprecated("feature_flag.result.variant"),
    )
    old_value: Any = Field(
        default=None, alias="value", json_schema_extra=_deprecated("feature_flag.result.value")
    )
    reason: Any = Field(default=None, alias="feature_flag.result.reason", json_schema_extra=_text())
    provider_name: Any = Field(
        default=None, alias="feature_flag.provider.name", json_schema_extra=_text()
    )
    set_id: Any = Field(default=None, alias="feature_flag.set.id", json_schema_extra=_text())
    version: Any = Field(default=None, alias="feature_flag.version", json_schema_extra=_text())
    error_type: Any = Field(default=None, alias="error.type", json_schema_extra=_text())
    error_message: Any = Field(
        default=None, alias="feature_flag.error.message", json_schema_extra=_text()
    )

    @property
    def variant(self) -> str | None:
        """The variant that was served, from the first attribute that is present; None for none."""
        for value in (self.result_variant, self.old_variant, self.result_value, self.old_value):
            if value is None:
                continue
            if isinstance(value, bool):
                return "true" if value else "false"
            return value if isinstance(value, str) else None
        return None

    @model_validator(mode="after")
    def _names_a_variant(self) -> Self:
        variant = self.variant
        if variant is None or not is_name(variant):
            raise ValueError("no variant that is a name; send feature_flag.result.variant")
        return self
