"""Unleash's own Python SDK in a process of its own.

Says which users a flag lets in, as it knows the flag at that moment.

`python client.py URL TOKEN`, in an environment of `requirements.lock`. Reads one JSON object a
line: `flag`, `users` (their contexts, in order), and maybe `state`, what a server would send, to be
asked in place of the server's. Writes one JSON list a line: for each user, false, or the name of
the variant, or true without variants.
"""

from __future__ import annotations

import json
import logging
import sys

from UnleashClient import UnleashClient
from yggdrasil_engine.engine import UnleashEngine


def evaluated(engine: UnleashEngine, flag_key: str, context: dict[str, object]) -> bool | str:
    """Return what the SDK's engine finds."""
    variant = engine.get_variant(flag_key, context).variant
    return str(variant.name) if variant.enabled else bool(variant.feature_enabled)


def main(url: str, token: str) -> None:
    """Answer until standard input ends."""
    logging.disable(logging.CRITICAL)
    client = UnleashClient(
        url=f"{url}/api",
        app_name="rolloutd-tests",
        custom_headers={"Authorization": token},
        refresh_interval=1,
        disable_metrics=True,
        disable_registration=True,
    )
    client.initialize_client()
    for line in sys.stdin:
        asked = json.loads(line)
        answers: list[bool | str] = []
        engine = UnleashEngine()
        if "state" in asked:
            engine.take_state(json.dumps(asked["state"]))
        for context in asked["users"]:
            if "state" in asked:
                answers.append(evaluated(engine, asked["flag"], context))
                continue
            variant = client.get_variant(asked["flag"], context)
            answers.append(variant["name"] if variant["enabled"] else variant["feature_enabled"])
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()
    client.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
