"""Reads events and runs from a Prefect server's API, a page at a time.

Belongs here: requests and pages. Does not belong here: what an event means (`events.py`).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from batches.bridge.events import EVALUATION, TERMINAL, Ending, read_run, time_of

_PAGE = 50  # the most that Prefect gives
_RUNS_AT_ONCE = 100
_PAUSES = (0.1, 0.5)  # seconds before the second and the third try
#: A run whose flow run has ended for so long will not end by itself any more.
_ORPHANED_AFTER = timedelta(seconds=30)
_FILTERS: tuple[dict[str, Any], ...] = (
    {"event": {"name": [EVALUATION]}},
    {
        "event": {"prefix": ["prefect.task-run.", "prefect.flow-run."]},
        "resource": {"labels": {"prefect.state-type": list(TERMINAL)}},
    },
)


class PrefectApi:
    """A Prefect server, or a workspace of Prefect Cloud."""

    def __init__(self, client: httpx.Client) -> None:
        """`client` has the API's address as its base, such as http://127.0.0.1:4200/api/."""
        self._client = client

    def events(self, since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
        """Yield evaluations and ends of runs that occurred between, the oldest first of each.

        Raises httpx.HTTPError.
        """
        for condition in _FILTERS:
            occurred = {"since": since.isoformat(), "until": until.isoformat()}
            query = {**condition, "occurred": occurred, "order": "ASC"}
            page = self._post("events/filter", {"filter": query, "limit": _PAGE})
            while True:
                yield from page["events"]
                if not page["next_page"]:
                    break
                # Behind a proxy the server names itself by an address that only it knows.
                words = parse_qs(urlsplit(page["next_page"]).query)
                page = self._answer("GET", "events/filter/next", params=words)

    def with_durations(self, endings: Sequence[Ending]) -> list[Ending]:
        """Return endings with their durations, which flow runs' events do not name."""
        names = [ending.run for ending in endings if ending.seconds is None]
        runs = self._runs("flow-run", names)
        return [
            replace(ending, seconds=float(runs[ending.run].get("total_run_time") or 0.0))
            if ending.seconds is None and ending.run in runs
            else ending
            for ending in endings
        ]

    def endings_of(self, unfinished: Mapping[str, str | None], now: datetime) -> list[Ending]:
        """Return how runs ended whose own events never came.

        A task run that is left behind by a flow run that has ended, ends as that one did.
        """
        runs = {
            **self._runs("task-run", list(unfinished)),
            **self._runs("flow-run", [*unfinished, *filter(None, unfinished.values())]),
        }
        endings = []
        for name, flow_run in unfinished.items():
            run, kind = runs.get(name), name.partition(".")[0]
            ending = None if run is None else read_run(kind, run)
            if ending is None and flow_run in runs and flow_run != name:
                left_by = read_run("flow-run", runs[flow_run])
                if left_by is not None and now - left_by.at > _ORPHANED_AFTER:
                    ending = _orphaned(name, run, left_by)
            if ending is not None:
                endings.append(ending)
        return endings

    def _runs(self, kind: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the runs of that kind among `names`, by name."""
        ids = sorted({name.partition(".")[2] for name in names if name.startswith(f"{kind}.")})
        path = kind.replace("-", "_") + "s"  # task_runs, flow_runs
        found: dict[str, dict[str, Any]] = {}
        for first in range(0, len(ids), _RUNS_AT_ONCE):
            chosen = {"id": {"any_": ids[first : first + _RUNS_AT_ONCE]}}
            for run in self._post(f"{path}/filter", {path: chosen, "limit": _RUNS_AT_ONCE}):
                found[f"{kind}.{run['id']}"] = run
        return found

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._answer("POST", path, json=body)

    def _answer(self, method: str, path: str, **options: Any) -> Any:
        """Ask up to three times: of many pages, one failure would have all of them read again."""
        for pause in _PAUSES:
            try:
                answer = self._client.request(method, path, **options)
            except httpx.TransportError:
                time.sleep(pause)  # the last try, below, says what is wrong
                continue
            if not answer.is_server_error:
                return answer.raise_for_status().json()
            time.sleep(pause)
        return self._client.request(method, path, **options).raise_for_status().json()


def _orphaned(name: str, run: Mapping[str, Any] | None, left_by: Ending) -> Ending:
    """Return the end of a task run that never ended by itself, as that of its flow run."""
    is_fault_of_run = left_by.state_type == "COMPLETED"  # the flow went on without it
    began = None if run is None else run.get("start_time")
    return Ending(
        run=name,
        run_count=0 if run is None else int(run.get("run_count") or 0),
        state_type="CRASHED" if is_fault_of_run else left_by.state_type,
        state_name="Unfinished" if is_fault_of_run else left_by.state_name,
        seconds=None if began is None else max(0.0, (left_by.at - time_of(began)).total_seconds()),
        at=left_by.at,
    )


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the header that Prefect's own variables ask for."""
    if key := environ.get("PREFECT_API_KEY"):
        return {"authorization": f"Bearer {key}"}
    if auth := environ.get("PREFECT_API_AUTH_STRING"):
        return {"authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}
    return {}
