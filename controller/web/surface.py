"""The servers of a replica: the HTTP surface, the port for probes, and flagd's sync source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from controller.codec.decisions import judgement_to_json
from controller.codec.rollouts import rollout_to_json
from controller.core.judging.judgement import Judgement
from controller.health import Faults, Health
from controller.ports import Clock, PlaneStanding
from controller.settings import Settings
from controller.telemetry import Metrics
from controller.web.app import make_app, make_ops_app
from controller.web.bucketing import Generation
from controller.web.event_stream import EventStreams, StreamLimits
from controller.web.flagd_sync import FlagdSyncServer, SyncAddress
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer

#: Connections of the port for probes: some kubelets, some Prometheus servers, and a few people.
OPS_CONNECTIONS = 64


class Surface:
    """Starts and stops the servers."""

    def __init__(
        self,
        settings: Settings,
        board: FlagBoard,
        health: Health,
        metrics: Metrics,
        faults: Faults,
        *,
        judgement_of: Callable[[str], Judgement | None],
        plane_standings: Callable[[str], Sequence[PlaneStanding] | None],
    ) -> None:
        """`judgement_of` and `plane_standings` return None for flags of other replicas."""
        http = settings.http

        def newest_evidence(flag_key: str) -> bytes | None:
            judgement = judgement_of(flag_key)
            return None if judgement is None else judgement_to_json(judgement)

        app = make_app(
            board,
            health,
            metrics,
            describe=rollout_to_json,
            newest_evidence=newest_evidence,
            plane_standings=plane_standings,
            allowed_hosts=http.allowed_hosts,
            max_body_bytes=http.max_body_bytes,
            stream_limits=StreamLimits(streams=http.max_event_streams),
            max_bulk_per_second=http.max_bulk_per_second,
            faults=faults,
            has_metrics=http.ops_port is None,
        )
        self._close_seconds = settings.shutdown.close_seconds
        self._health = health
        self._event_streams: EventStreams = app.state.event_streams
        self._http = HttpServer(
            app,
            host=http.host,
            port=http.port,
            max_connections=http.max_connections,
            max_per_client=http.connections_per_client,
        )
        self._ops = make_ops_server(settings, board, health, metrics, faults)
        self._flagd_sync = make_flagd_sync(settings, board)
        self._logger = structlog.get_logger()

    async def start(self) -> None:
        """Listen. The port for probes comes first: a probe must not wait for anything."""
        if self._ops is not None:
            await self._ops.start()
            self._logger.info("ops_http_started", port=self._ops.port)
        await self._http.start()
        self._health.ready("http")
        self._logger.info("http_started", port=self._http.port)
        if self._flagd_sync is not None:
            await self._flagd_sync.start()
            self._logger.info("flagd_sync_started", port=self._flagd_sync.port)

    @property
    def closers(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        """What stops each server."""
        closers: list[tuple[str, Callable[[], Awaitable[None]]]] = [("http", self._stop_http)]
        if self._ops is not None:
            closers.append(("ops_http", self._ops.stop))
        if self._flagd_sync is not None:
            closers.append(("flagd_sync", self._flagd_sync.stop))
        return closers

    async def _stop_http(self) -> None:
        self._event_streams.end()
        await self._http.stop(self._close_seconds)


def make_board(settings: Settings, clock: Clock) -> FlagBoard:
    """Return the flags as this replica serves them."""
    http = settings.http
    return FlagBoard(
        generation=Generation(http.bucketing),
        flag_set_id=settings.environment,
        lease_seconds=http.lease_seconds,
        when_stale=http.when_stale,
        now=clock.now,
    )


def make_ops_server(
    settings: Settings, board: FlagBoard, health: Health, metrics: Metrics, faults: Faults
) -> HttpServer | None:
    """Return the server for probes and scrapers alone, None when there is to be none."""
    http = settings.http
    if http.ops_port is None:
        return None
    app = make_ops_app(board, health, metrics, faults, allowed_hosts=http.allowed_hosts)
    return HttpServer(
        app,
        host=http.host if http.ops_host is None else http.ops_host,
        port=http.ops_port,
        max_connections=OPS_CONNECTIONS,
        max_per_client=OPS_CONNECTIONS // 4,
        head_seconds=3.0,
        keep_alive_seconds=5,
        backlog=OPS_CONNECTIONS,
        setting="http.ops_host and http.ops_port",
    )


def make_flagd_sync(settings: Settings, board: FlagBoard) -> FlagdSyncServer | None:
    """Return flagd's gRPC sync source, None when it is not offered. Raises ConfigInvalid."""
    flagd_sync = settings.flagd_sync
    if flagd_sync.port is None:
        return None
    address = SyncAddress(
        flagd_sync.host,
        flagd_sync.port,
        flagd_sync.certificate_file,
        flagd_sync.key_file,
        flagd_sync.max_streams,
    )
    return FlagdSyncServer(board, address, flag_set_id=settings.environment)
