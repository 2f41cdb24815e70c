"""The servers of a replica: the HTTP surface, the port for probes, and flagd's sync source."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.applications import Starlette

from controller.codec.rollouts import rollout_to_json
from controller.health import Faults, Health
from controller.ports import Clock, FlagUses
from controller.settings import HttpSettings, Settings
from controller.telemetry import Metrics
from controller.web.admission import Admission
from controller.web.app import make_app, make_ops_app
from controller.web.bucketing import Generation
from controller.web.event_stream import EventStreams, StreamLimits
from controller.web.flagd_sync import FlagdSyncServer, SyncAddress
from controller.web.flags import FlagBoard
from controller.web.incidents import NotificationSource
from controller.web.inventory import FlagSource
from controller.web.page.live import LivePages
from controller.web.reports import ReportSource
from controller.web.server import HttpServer
from controller.web.signals import SignalSource
from controller.web.status_page import PublicNames
from controller.web.steering import Steer, Steering, Tokens
from controller.web.tls import Certificate

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
        reports: ReportSource,
        clock: Clock,
        steering: Steering,
        admission: Admission | None,
        events_of: Callable[[str | None], bytes | None],
        uses: Callable[[], FlagUses],
        signals: SignalSource | None,
        notifications: NotificationSource | None,
    ) -> None:
        """`reports` has those of all replicas' flags. `admission` None: nobody can sign in.

        `events_of` returns None for a flag without events; without a flag, a summary of all.
        `uses` are those of all flags, over all replicas. `signals` None: no hook is set.
        """
        http = settings.http
        token = http.command_token
        steer = None if token is None else Steer(steering, Tokens(token.get_secret_value()))
        self._admission = admission
        app = make_app(
            board,
            health,
            metrics,
            describe=rollout_to_json,
            reports=reports,
            now=clock.now,
            events_of=events_of,
            allowed_hosts=http.allowed_hosts,
            max_body_bytes=http.max_body_bytes,
            stream_limits=StreamLimits(streams=http.max_event_streams),
            max_bulk_per_second=http.max_bulk_per_second,
            faults=faults,
            has_metrics=http.ops_port is None,
            steer=steer,
            environment=settings.environment,
            page_streams=http.page_streams,
            why_not_shown=http.why_not_shown,
            admission=admission,
            flag_source=FlagSource(settings.flags, uses),
            public=public_names(settings),
            signals=signals,
            notifications=notifications,
        )
        self._close_seconds = settings.shutdown.close_seconds
        self._health = health
        self._event_streams: EventStreams = app.state.event_streams
        self._live_pages: LivePages = app.state.live_pages
        self._certificate = make_certificate(http)
        self._http = make_http_server(http, app, metrics, self._certificate)
        self._ops = make_ops_server(settings, board, health, metrics, faults, steer)
        self._flagd_sync = make_flagd_sync(settings, board)
        self._logger = structlog.get_logger()
        self._reload: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. The port for probes comes first: a probe must not wait for anything."""
        if self._ops is not None:
            await self._ops.start()
            self._logger.info("ops_http_started", port=self._ops.port)
        if self._certificate is not None:
            await asyncio.to_thread(self._certificate.warn)
        await self._http.start()
        self._health.ready("http")
        self._logger.info("http_started", port=self._http.port)
        if self._flagd_sync is not None:
            await self._flagd_sync.start()
            self._logger.info("flagd_sync_started", port=self._flagd_sync.port)

    def reloading(self, *on_hangup: Callable[[], object]) -> Callable[[], None]:
        """Return what SIGHUP calls: `on_hangup`, and a reload of the access file."""

        def hang_up() -> None:
            for call in on_hangup:
                call()
            if self._admission is not None:
                self._reload = asyncio.create_task(self._admission.reload(), name="access_reload")

        return hang_up

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
        self._live_pages.end()
        await self._http.stop(self._close_seconds)


def public_names(settings: Settings) -> PublicNames | None:
    """Return what everybody may see of releases, None for nothing."""
    page = settings.status_page
    return PublicNames(page.flags, page.title, page.cache_seconds) if page.flags else None


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


def make_http_server(
    http: HttpSettings, app: Starlette, metrics: Metrics, certificate: Certificate | None
) -> HttpServer:
    """Return the server of everything that apps, people and monitors call."""
    return HttpServer(
        app,
        host=http.host,
        port=http.port,
        max_connections=http.max_connections,
        max_per_client=http.connections_per_client,
        certificate=certificate,
        handshake_failed=lambda reason: metrics.handshakes_failed.of(reason).inc(),
        at_once=app.state.at_once,
    )


def make_certificate(http: HttpSettings) -> Certificate | None:
    """Return the listener's certificate, None without TLS. Raises ConfigInvalid."""
    if http.certificate_file is None:
        return None
    return Certificate(http.certificate_file, http.key_file, "http", http.client_ca_file)


def make_ops_server(
    settings: Settings,
    board: FlagBoard,
    health: Health,
    metrics: Metrics,
    faults: Faults,
    steer: Steer | None = None,
) -> HttpServer | None:
    """Return the server for probes and scrapers alone, None when there is to be none."""
    http = settings.http
    if http.ops_port is None:
        return None
    app = make_ops_app(
        board, health, metrics, faults, allowed_hosts=http.allowed_hosts, steer=steer
    )
    return HttpServer(
        app,
        host=http.host if http.ops_host is None else http.ops_host,
        port=http.ops_port,
        max_connections=OPS_CONNECTIONS,
        max_per_client=OPS_CONNECTIONS // 4,
        head_seconds=3.0,
        keep_alive_seconds=5,
        backlog=OPS_CONNECTIONS,
        settings=("http.ops_host", "http.ops_port"),
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
        flagd_sync.streams_per_client,
    )
    return FlagdSyncServer(board, address, flag_set_id=settings.environment)
