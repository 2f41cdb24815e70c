"""One flag as it is served: every answer about it, written when its revision arrives.

Belongs here: from a rollout to the bytes of answers, and choosing one for a context. Does not
belong here: which revision is served, and whether it may be (`flags.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from controller.codec.flagd import definition_of, metadata_of, weight_of
from controller.core.audience import Attributes
from controller.core.rollout import Rollout
from controller.core.serving import (
    Part,
    Serving,
    chooser,
    counted_as_treatment,
    percent_to_serve,
    serving,
)
from controller.web.bucketing import Generation, bucketer, lot_drawer


@dataclass(frozen=True, slots=True)
class ServedFlag:
    """One flag at one revision, with every answer about it already written."""

    rollout: Rollout
    serving: Serving
    percent: float  # of all contexts, whatever their audience
    weight: int  # buckets below this are in treatment
    bucket: Callable[[str], int]
    needs_key: bool  # False: every context gets the same, and that is final
    treatment: bytes  # OFREP's successful evaluation, as JSON
    control: bytes
    definition: bytes  # flagd's definition, as `"key":{...}`
    rings: RingedAnswers | None = None  # None: treatment below `weight`, else control

    @property
    def reads_attributes(self) -> bool:
        """True when more of a context than its targeting key decides."""
        return self.rings is not None and self.rings.reads_attributes

    def evaluate(self, targeting_key: str, attributes: Attributes | None = None) -> bytes:
        """Return OFREP's answer for one context.

        `attributes` may be left out where none are read. Raises UnicodeEncodeError for a key that
        is no Unicode text.
        """
        if self.rings is not None:
            return self.rings.evaluate(targeting_key, self.bucket(targeting_key), attributes or {})
        return self.treatment if self.bucket(targeting_key) < self.weight else self.control

    def treats(self, answer: bytes) -> bool:
        """Return whether an answer of `evaluate` is treatment."""
        return answer is self.treatment or (
            self.rings is not None and answer in self.rings.treatments
        )


@dataclass(frozen=True, slots=True)
class RingedAnswers:
    """The answers of a flag with audiences or a divided treatment."""

    choose: Callable[[int, Attributes], Part]
    draw: Callable[[str], int] | None  # hash of the targeting key; None: treatment is not divided
    name: Callable[[Part, int], str]
    answers: Mapping[str, bytes]  # by variant
    treatments: frozenset[bytes]
    reads_attributes: bool

    def evaluate(self, targeting_key: str, bucket: int, attributes: Attributes) -> bytes:
        """Return OFREP's answer for one context."""
        part = self.choose(bucket, attributes)
        return self.answers[
            self.name(part, self.draw(targeting_key) if self.draw is not None else 0)
        ]


def prepare(
    rollout: Rollout,
    generation: Generation,
    flag_set_id: str,
    *,
    stale_metadata: Mapping[str, str],
    gives_control: bool = False,
) -> ServedFlag:
    """Return a flag with its answers.

    `stale_metadata` is added to the metadata of a stale answer; empty: it is not stale.
    `gives_control` makes every answer control.
    """
    percent = percent_to_serve(rollout)
    served = serving(rollout)
    # STATIC lets clients keep the answer, so only an answer that cannot become wrong may have
    # it: control, after the end. A completed rollout that is closed opens again.
    needs_key = not (rollout.has_ended and rollout.phase.serves_nothing)
    reason = "STATIC" if not needs_key else "SPLIT" if served.is_plain else "TARGETING_MATCH"
    metadata = {**metadata_of(rollout), **stale_metadata}

    def answer(variant: str) -> bytes:
        return msgspec.json.encode(
            {
                "key": rollout.flag_key,
                "value": served.values[variant],
                "reason": "STALE" if stale_metadata else reason,
                "variant": variant,
                "metadata": {"flagSetId": flag_set_id, **metadata},
            }
        )

    answers = {variant: answer(variant) for variant in served.values}
    is_plain = served.is_plain and not served.split
    return ServedFlag(
        rollout=rollout,
        serving=served,
        percent=percent,
        weight=0 if gives_control else weight_of(percent),
        bucket=bucketer(rollout.flag_key, generation),
        needs_key=needs_key and not gives_control,
        treatment=answers[counted_as_treatment(rollout.plan)[0]],
        control=answers[served.control],
        definition=msgspec.json.encode(rollout.flag_key)
        + b":"
        + msgspec.json.encode(definition_of(rollout, served)),
        rings=None if is_plain or gives_control else _ringed(rollout, served, answers, generation),
    )


def _ringed(
    rollout: Rollout, served: Serving, answers: Mapping[str, bytes], generation: Generation
) -> RingedAnswers:
    untreated = (served.control, served.unassigned)
    return RingedAnswers(
        choose=chooser(served),
        draw=lot_drawer(rollout.flag_key, generation) if served.split else None,
        name=served.name,
        answers=answers,
        treatments=frozenset(
            answer for variant, answer in answers.items() if variant not in untreated
        ),
        reads_attributes=any(ring.audience is not None for ring in served.rings),
    )
