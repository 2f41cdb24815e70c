"""The same example with flagd's evaluation in the app's own process: `make example-flagd`.

The app follows rolloutd's gRPC sync source, so no request asks anybody for a variant.
"""

from __future__ import annotations

from staging import EXAMPLES, Example, main, wants_bad_version

from checkout.run import Shop
from controller.demo.store import LOOPBACK, free_port

if __name__ == "__main__":
    port = str(free_port())
    main(
        Example(
            title="FastAPI checkout with flagd in process",
            plans=[EXAMPLES / "checkout" / "plan.yaml"],
            is_bad=wants_bad_version(),
            apps=Shop(flagd_sync=f"{LOOPBACK}:{port}"),
            longest_seconds=120.0,
            settings={"FLAGD_SYNC__PORT": port},
        )
    )
