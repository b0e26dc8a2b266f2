"""The HTTP interface: `POST /predict`, health, readiness, metrics, and its own description at `/docs`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from numpy import uint8
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST as METRICS_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import JSONResponse

from onenip.errors import ImageError
from onenip.images import load_image
from onenip.serving.champions import Follower, Roster, Serving
from onenip.serving.queue import BusyQueueError, JudgingQueue
from onenip.serving.recent import remember
from onenip.serving.schema import REFUSALS, CategoryAnswer, ImageAnswer, ImageRequest, Readiness
from onenip.version import __version__

_KEY_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)
_TOO_LARGE, _UNPROCESSABLE, _BUSY, _NOT_FOUND = 413, 422, 503, 404


@dataclass(frozen=True)
class ServeSettings:
    """How the server behaves.

    Attributes:
        api_key: what a client must send as `X-API-Key`; empty asks for none.
        max_bytes: of a request.
        max_pixels: of an image.
        max_waiting: requests that may wait; more get 503.
        batch_size: images that go through the network together.
        refresh_seconds: time between two looks into the registry; 0 never looks.
        recent: folder that the latest images and answers are kept in; None keeps none.
    """

    api_key: str = ""
    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_waiting: int = 64
    batch_size: int = 1
    refresh_seconds: float = 20.0
    recent: Path | None = None


class _Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["category", "verdict"]
        self.verdicts = Counter("onenip_verdicts", "Verdicts given", labels, registry=self.registry)
        self.refused = Counter(
            "onenip_refused", "Requests refused, by HTTP status", ["code"], registry=self.registry
        )
        self.seconds = Histogram(
            "onenip_predict_seconds",
            "Time to judge an image, waiting included",
            registry=self.registry,
        )
        self.waiting = Gauge(
            "onenip_waiting_requests", "Requests that wait", registry=self.registry
        )
        self.version = Gauge(
            "onenip_serving_version", "Version that serves", ["category"], registry=self.registry
        )
        self.fresh = Gauge(
            "onenip_registry_up",
            "1 if the last look into the registry worked, else 0",
            registry=self.registry,
        )

    def render(self, queue: JudgingQueue, champions: Follower) -> bytes:
        """All figures, as they are now, in Prometheus' text format."""
        self.waiting.set(queue.waiting)
        self.fresh.set(champions.is_fresh)
        for serving in champions.roster.serving.values():
            self.version.labels(serving.category).set(serving.version)
        return generate_latest(self.registry)


@dataclass(frozen=True)
class _Judge:
    """From a file's bytes to an answer, or an HTTPException that says why there is none."""

    champions: Follower
    queue: JudgingQueue
    metrics: _Metrics
    settings: ServeSettings

    async def __call__(self, content: bytes, category: str | None) -> dict[str, Any]:
        roster = self.champions.roster  # a change meanwhile is for the next request
        _require_serving(roster, category)
        image = await asyncio.to_thread(_decode, content, self.settings.max_pixels)
        try:
            with self.metrics.seconds.time():
                found = await self.queue.judge(roster.model, image, category)
        except BusyQueueError as error:
            raise HTTPException(_BUSY, str(error), {"Retry-After": "1"}) from error
        except ImageError as error:
            raise HTTPException(_NOT_FOUND, f"image: {error.reason}") from error
        answering = roster.serving[found.category]
        self.metrics.verdicts.labels(found.category, found.verdict).inc()
        answer = found.to_dict() | {
            "version": answering.version,
            "digest": answering.detector.digest,
            "warning": answering.problem or self.champions.problem,
        }
        if self.settings.recent is not None:
            await asyncio.to_thread(remember, self.settings.recent, content, answer)
        return answer


def build_app(champions: Follower, settings: ServeSettings) -> FastAPI:
    """The web application.

    Args:
        champions: who answers; refreshed while the application runs.
        settings: limits and key.
    """
    metrics = _Metrics()
    queue = JudgingQueue(max_waiting=settings.max_waiting, batch_size=settings.batch_size)
    judge = _Judge(champions, queue, metrics, settings)

    @asynccontextmanager
    async def run(_app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        following = asyncio.create_task(_follow(champions, settings.refresh_seconds))
        yield
        following.cancel()
        await queue.stop()

    app = FastAPIOffline(
        title="onenip",
        version=__version__,
        lifespan=run,
        description="Says of an image whether it is anomalous, where, and how surely.",
    )
    _limit_requests(app, settings, metrics)

    def check_key(key: Annotated[str | None, Depends(_KEY_HEADER)]) -> None:
        if settings.api_key and not secrets.compare_digest(key or "", settings.api_key):
            raise HTTPException(401, "wrong or missing X-API-Key")

    @app.post(
        "/predict",
        dependencies=[Depends(check_key)],
        response_model=ImageAnswer,
        responses=REFUSALS,
    )
    async def predict(request: ImageRequest) -> dict[str, Any]:
        """Judge an image that is sent as base64."""
        try:
            content = base64.b64decode(request.image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise HTTPException(_UNPROCESSABLE, f"image: not base64: {error}") from error
        return await judge(content, request.category)

    @app.post(
        "/predict/file",
        dependencies=[Depends(check_key)],
        response_model=ImageAnswer,
        responses=REFUSALS,
    )
    async def predict_file(
        file: Annotated[UploadFile, File(description="an image file")],
        category: Annotated[str | None, Form()] = None,
    ) -> dict[str, Any]:
        """Judge an image that is uploaded as a file."""
        return await judge(await file.read(), category)

    @app.get("/categories", dependencies=[Depends(check_key)], response_model=list[CategoryAnswer])
    async def categories() -> list[dict[str, Any]]:
        """Which version answers for which category."""
        return [_describe(serving) for serving in champions.roster.serving.values()]

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/ready", response_model=Readiness)
    async def ready(response: Response) -> dict[str, Any]:
        """Whether anything can be answered; 503 until a champion is loaded."""
        is_ready = bool(champions.roster.serving)
        if not is_ready:
            response.status_code = _BUSY
        return {"ready": is_ready, "fresh": champions.is_fresh, "problem": champions.problem}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.render(queue, champions), media_type=METRICS_TYPE)

    return app


def _require_serving(roster: Roster, category: str | None) -> None:
    """Make sure that something may answer.

    Raises:
        HTTPException: 404 for a category without an approved model, 503 if nothing serves.
    """
    if not roster.serving:
        raise HTTPException(_BUSY, "no category has an approved model", {"Retry-After": "20"})
    if category is not None and category not in roster.serving:
        known = ", ".join(roster.serving)
        raise HTTPException(_NOT_FOUND, f"{category}: no approved model; there is {known}")


def _decode(content: bytes, max_pixels: int) -> NDArray[uint8]:
    try:
        return load_image(content, max_pixels=max_pixels)
    except ImageError as error:
        code = _TOO_LARGE if "pixels" in error.reason else _UNPROCESSABLE
        raise HTTPException(code, f"image: {error.reason}") from error


def _describe(serving: Serving) -> dict[str, Any]:
    known = serving.detector.spec.categories[serving.category]
    return {
        "category": serving.category,
        "version": serving.version,
        "digest": serving.detector.digest,
        "threshold": known.image_threshold,
        "provisional": serving.is_provisional,
        "warning": serving.problem,
    }


def _limit_requests(app: FastAPI, settings: ServeSettings, metrics: _Metrics) -> None:
    """Refuse what is too large before it is read, and count what is refused."""

    @app.middleware("http")
    async def limit(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdigit():
            response: Response = JSONResponse({"detail": "Content-Length is needed"}, 411)
        elif length.isdigit() and int(length) > settings.max_bytes:
            detail = f"a request may have {settings.max_bytes} bytes, not {length}"
            response = JSONResponse({"detail": detail}, _TOO_LARGE)
        else:
            response = await call_next(request)
        if response.status_code >= 400:
            metrics.refused.labels(response.status_code).inc()
        return response


async def _follow(champions: Follower, seconds: float) -> None:
    """Look into the registry again and again, in a thread: requests go on meanwhile."""
    while seconds > 0:
        await asyncio.to_thread(champions.refresh)
        await asyncio.sleep(seconds)
