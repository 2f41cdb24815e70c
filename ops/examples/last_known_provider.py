"""An OpenFeature provider that keeps each user's variant while the flag server is away. Copy it.

OFREP's server-side provider keeps nothing: while rolloutd restarts, every user gets the default in
the code, and users of the new version fall back to the old one. This wrapper remembers the last
answer for each flag and context, and gives it again when the provider fails.

    api.set_provider(LastKnownProvider(OFREPProvider("http://rolloutd:8080", timeout=1.0)))

Answers that are given again have the reason STALE. A context that was never evaluated still gets
the default: put flagd beside the app if that matters (ops/serving.md). Safe to call from threads.

Needs openfeature-sdk; nothing of rolloutd.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode, GeneralError, OpenFeatureError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.hook import Hook
from openfeature.provider import AbstractProvider, FeatureProvider, Metadata

T = TypeVar("T")
Resolve = Callable[..., FlagResolutionDetails[T]]

#: These are answers of a server that works: nothing is given in their place.
_ANSWERS = frozenset(
    {
        ErrorCode.FLAG_NOT_FOUND,
        ErrorCode.INVALID_CONTEXT,
        ErrorCode.TARGETING_KEY_MISSING,
        ErrorCode.TYPE_MISMATCH,
    }
)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The last answer for one flag and context."""

    details: FlagResolutionDetails[Any]
    at: float  # monotonic seconds


class LastKnownProvider(AbstractProvider):
    """Gives a provider's last answer again while the provider fails."""

    def __init__(
        self,
        provider: FeatureProvider,
        *,
        capacity: int = 100_000,
        keep_seconds: float = 86_400.0,
        retry_seconds: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap `provider`.

        `capacity` answers are kept at most, about 1 KB each; the least recently used goes first.
        None is given again after `keep_seconds`. After a failure the provider is asked once in
        `retry_seconds`: other evaluations do not wait for a server that hangs.
        """
        super().__init__()
        self._provider = provider
        self._capacity = capacity
        self._keep_seconds = keep_seconds
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._failed_at: float | None = None

    def get_metadata(self) -> Metadata:
        """Return the name, with that of the wrapped provider."""
        return Metadata(name=f"last known of {self._provider.get_metadata().name}")

    def get_provider_hooks(self) -> list[Hook]:
        """Return the hooks of the wrapped provider."""
        return self._provider.get_provider_hooks()

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Initialize the wrapped provider."""
        self._provider.initialize(evaluation_context)

    def shutdown(self) -> None:
        """Shut the wrapped provider down."""
        self._provider.shutdown()

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """Return the provider's answer, or the last one."""
        resolve = self._provider.resolve_boolean_details
        return self._resolve("boolean", resolve, flag_key, default_value, evaluation_context)

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        """Return the provider's answer, or the last one."""
        resolve = self._provider.resolve_string_details
        return self._resolve("string", resolve, flag_key, default_value, evaluation_context)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        """Return the provider's answer, or the last one."""
        resolve = self._provider.resolve_integer_details
        return self._resolve("integer", resolve, flag_key, default_value, evaluation_context)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        """Return the provider's answer, or the last one."""
        resolve = self._provider.resolve_float_details
        return self._resolve("float", resolve, flag_key, default_value, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Return the provider's answer, or the last one."""
        resolve = self._provider.resolve_object_details
        return self._resolve("object", resolve, flag_key, default_value, evaluation_context)

    def _resolve(
        self,
        kind: str,
        resolve: Resolve[T],
        flag_key: str,
        default_value: Any,
        context: EvaluationContext | None,
    ) -> FlagResolutionDetails[T]:
        key = (kind, flag_key, _identity(context))
        if not self._may_ask():
            return self._last(key, GeneralError("the flag server did not answer a moment ago"))
        try:
            details = resolve(flag_key, default_value, context)
        except OpenFeatureError as error:
            if error.error_code in _ANSWERS:
                self._note_answer(key, None)
                raise
            return self._fail(key, error)
        except Exception as error:  # whatever a provider raises, it has not answered
            return self._fail(key, GeneralError(f"{type(error).__name__}: {error}"))
        if details.error_code is not None and details.error_code not in _ANSWERS:
            return self._fail(key, GeneralError(details.error_message or "the provider failed"))
        self._note_answer(key, details)
        return details

    def _may_ask(self) -> bool:
        """Return whether to ask the provider: one evaluation a while, after it has failed."""
        with self._lock:
            now = self._monotonic()
            if self._failed_at is None:
                return True
            if now - self._failed_at < self._retry_seconds:
                return False
            self._failed_at = now  # this evaluation asks; the others wait for its outcome
            return True

    def _note_answer(
        self, key: tuple[str, str, str], details: FlagResolutionDetails[Any] | None
    ) -> None:
        """Keep an answer; None: the server has none for this key."""
        with self._lock:
            self._failed_at = None
            self._kept.pop(key, None)
            if details is not None and details.error_code is None:
                self._kept[key] = _Kept(details, self._monotonic())
                if len(self._kept) > self._capacity:
                    self._kept.popitem(last=False)

    def _fail(
        self, key: tuple[str, str, str], error: OpenFeatureError
    ) -> FlagResolutionDetails[Any]:
        with self._lock:
            self._failed_at = self._monotonic()
        return self._last(key, error)

    def _last(
        self, key: tuple[str, str, str], error: OpenFeatureError
    ) -> FlagResolutionDetails[Any]:
        """Return the last answer, marked as stale; raise `error` where there is none."""
        with self._lock:
            kept = self._kept.get(key)
            is_kept = kept is not None and self._monotonic() - kept.at <= self._keep_seconds
            if is_kept:
                self._kept.move_to_end(key)
        if kept is None or not is_kept:
            raise error
        return replace(kept.details, reason=Reason.STALE)


def _identity(context: EvaluationContext | None) -> str:
    """Return a text that is equal for equal contexts."""
    if context is None:
        return ""
    return json.dumps(
        [context.targeting_key, dict(context.attributes)], sort_keys=True, default=str
    )
