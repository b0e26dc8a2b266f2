"""The HTTP interface: `POST /predict`, health, readiness, metrics, and its own description at `/docs`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST as METRICS_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from onenip.errors import ForeignImageError, ImageError, UnknownCategoryError
from onenip.serving.bodies import read_form, read_json
from onenip.serving.champions import Follower, Roster, Serving
from onenip.serving.guard import Guard, Limits
from onenip.serving.queue import BusyQueueError, JudgingQueue
from onenip.serving.recent import remember
from onenip.serving.schema import (
    FORM_BODY,
    JSON_BODY,
    REFUSALS,
    CategoryAnswer,
    ImageAnswer,
    Readiness,
)
from onenip.version import __version__

# the guard asks for the key before a body is read; this one describes it at /docs
_DESCRIBED_KEY = Depends(APIKeyHeader(name="X-API-Key", auto_error=False))
_TOO_LARGE, _UNPROCESSABLE, _BUSY, _NOT_FOUND = 413, 422, 503, 404

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeSettings(Limits):
    """Settings of the server.

    Attributes:
        max_pixels: of an image.
        max_waiting: requests that may wait; more get 503.
        batch_size: images that go through the network together.
        refresh_seconds: time between two looks into the registry; 0 never looks.
        recent: folder that the latest images and answers are kept in; None keeps none.
    """

    max_pixels: int = 50_000_000
    max_waiting: int = 64
    batch_size: int = 1
    refresh_seconds: float = 20.0
    recent: Path | None = None


class _Metrics:
    """Figures for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["category", "verdict"]
        self.verdicts = Counter("onenip_verdicts", "Verdicts given", labels, registry=self.registry)
        self.refused = Counter(
            "onenip_refused",
            "Requests refused or failed, by HTTP status",
            ["code"],
            registry=self.registry,
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
            "onenip_serving_version",
            "Version of the champion",
            ["category"],
            registry=self.registry,
        )
        self.fresh = Gauge(
            "onenip_registry_up",
            "1 if the registry was read of late, else 0",
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
    recent: _Recent

    async def __call__(self, content: bytes, category: str | None) -> dict[str, Any]:
        roster = self.champions.roster  # a change meanwhile is for the next request
        _require_champion(roster, category)
        try:
            with self.metrics.seconds.time():
                found = await self.queue.judge(roster.model, content, category)
        except BusyQueueError as error:
            raise HTTPException(_BUSY, str(error), {"Retry-After": "1"}) from error
        except ForeignImageError as error:
            raise HTTPException(_NOT_FOUND, f"image: {error.reason}") from error
        except ImageError as error:
            code = _TOO_LARGE if "pixels" in error.reason else _UNPROCESSABLE
            raise HTTPException(code, f"image: {error.reason}") from error
        answering = roster.serving[found.category]
        answer = found.to_dict() | {
            "version": answering.version,
            "digest": answering.detector.digest,
            "warning": answering.problem or self.champions.problem,
        }
        self.metrics.verdicts.labels(found.category, answer["verdict"]).inc()
        await self.recent.keep(content, answer)
        return answer


class _Recent:
    """Keeps the latest answers, where a folder was given; a full disk stops no answer."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._works = True

    async def keep(self, content: bytes, answer: dict[str, Any]) -> None:
        if self._folder is None:
            return
        try:
            await asyncio.to_thread(remember, self._folder, content, answer)
        except OSError as error:
            if self._works:
                log.warning("%s: recent answers are not kept: %s", self._folder, error)
            self._works = False
        else:
            self._works = True


def build_app(champions: Follower, settings: ServeSettings) -> FastAPI:
    """The web application.

    Args:
        champions: the detectors; refreshed while the application runs.
        settings: limits and key.
    """
    metrics = _Metrics()
    queue = JudgingQueue(
        max_waiting=settings.max_waiting,
        batch_size=settings.batch_size,
        max_pixels=settings.max_pixels,
    )
    judge = _Judge(champions, queue, metrics, _Recent(settings.recent))

    @asynccontextmanager
    async def run(_app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        champions.start(settings.refresh_seconds)
        yield
        champions.stop()
        await queue.stop()

    app = FastAPIOffline(
        title="onenip",
        version=__version__,
        lifespan=run,
        description="Judges images: anomalous or normal, where, and by what score.",
    )
    app.add_middleware(
        Guard, limits=settings, on_refusal=lambda code: metrics.refused.labels(code).inc()
    )

    @app.post(
        "/predict",
        dependencies=[_DESCRIBED_KEY],
        response_model=ImageAnswer,
        responses=REFUSALS,
        openapi_extra=JSON_BODY,
    )
    async def predict(request: Request) -> dict[str, Any]:
        """Judge an image that is sent as base64."""
        return await judge(*await read_json(request))

    @app.post(
        "/predict/file",
        dependencies=[_DESCRIBED_KEY],
        response_model=ImageAnswer,
        responses=REFUSALS,
        openapi_extra=FORM_BODY,
    )
    async def predict_file(request: Request) -> dict[str, Any]:
        """Judge an image that is uploaded as a file."""
        return await judge(*await read_form(request))

    @app.get("/categories", dependencies=[_DESCRIBED_KEY], response_model=list[CategoryAnswer])
    async def categories() -> list[dict[str, Any]]:
        """The champions by category."""
        return [_describe(serving) for serving in champions.roster.serving.values()]

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/ready", response_model=Readiness)
    async def ready(response: Response) -> dict[str, Any]:
        """Whether images can be judged; 503 until a champion is loaded."""
        is_ready = bool(champions.roster.serving)
        if not is_ready:
            response.status_code = _BUSY
        return {
            "ready": is_ready,
            "fresh": champions.is_fresh,
            "age_seconds": champions.age_seconds,
            "problem": champions.problem,
        }

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.render(queue, champions), media_type=METRICS_TYPE)

    return app


def _require_champion(roster: Roster, category: str | None) -> None:
    """Make sure that an image can be judged.

    Raises:
        HTTPException: 404 for a category without a champion, 503 if there is none at all.
    """
    if not roster.serving:
        raise HTTPException(_BUSY, "no category has a champion", {"Retry-After": "20"})
    if category is not None and category not in roster.serving:
        unknown = UnknownCategoryError(category, roster.serving, kind="served")
        raise HTTPException(_NOT_FOUND, str(unknown))


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
