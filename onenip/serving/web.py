"""The HTTP interface: `POST /predict`, health, readiness, metrics, and its own description at `/docs`."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST as METRICS_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from onenip.data.labels import clean_name
from onenip.data.outputs import OUTPUTS
from onenip.detector.heatmaps import draw_heat
from onenip.detector.prediction import Prediction
from onenip.errors import (
    DataError,
    ForeignImageError,
    ImageError,
    OneNIPError,
    SourceError,
    UnknownCategoryError,
)
from onenip.images import SampleRange, load_image
from onenip.review.answers import Answers, Feedback, Keeping
from onenip.review.marks import MarkError
from onenip.serving.bodies import MAP_OPTION, read_form, read_json, read_model
from onenip.serving.champions import Follower, Roster, Serving
from onenip.serving.deciding import build_router, make_identify, refuse
from onenip.serving.guard import Guard, Limits
from onenip.serving.people import NotAllowedError, People
from onenip.serving.queue import BusyQueueError, JudgingQueue
from onenip.serving.schema import (
    FORM_BODY,
    REFUSALS,
    CategoryAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    ImageAnswer,
    ImageRequest,
    Readiness,
    describe_json,
)
from onenip.version import __version__

# the guard asks for the key before a body is read; this one describes it at /docs
_DESCRIBED_KEY = Depends(APIKeyHeader(name="X-API-Key", auto_error=False))
_KEEP_SECONDS = 1.0  # that an answer waits until it is kept
_KEPT_AT_ONCE, _LATE = 2, 16  # answers; what comes when so many are late is not kept
_DRAWN_AT_ONCE = 2  # heat maps: each takes up to a gigabyte where an image has 100 megapixels
_TOO_LARGE, _UNPROCESSABLE, _BUSY, _NOT_FOUND = 413, 422, 503, 404

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeSettings(Limits):
    """Settings of the server.

    Attributes:
        max_waiting: requests that may wait; more get 503.
        batch_size: images that go through the network together.
        refresh_seconds: time between two looks into the registry; 0 never looks.
        keeping: which answers are kept, and where; None keeps none.
        people: the list of people who may decide.
        person_header: that a reverse proxy sets to the name of who logged in there; empty trusts none.
        proxies: addresses that the header is taken from.
    """

    max_waiting: int = 64
    batch_size: int = 1
    refresh_seconds: float = 20.0
    keeping: Keeping | None = None
    people: Path = OUTPUTS.people
    person_header: str = ""
    proxies: frozenset[str] = frozenset({"127.0.0.1", "::1"})


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
        self.feedback = Counter(
            "onenip_feedback", "Feedback on answers", ["label"], registry=self.registry
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
    kept: _Kept
    drawing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_DRAWN_AT_ONCE))

    async def __call__(
        self, content: bytes, category: str | None, *, has_map: bool
    ) -> dict[str, Any]:
        if not has_map:
            return (await self._judge(content, category))[0]
        async with (
            self.drawing
        ):  # before the image is judged: its map waits in memory, its file is small
            answer, found, sample_range = await self._judge(content, category)
            answer["map"] = await asyncio.to_thread(_draw_map, content, found, sample_range)
        return answer

    async def _judge(
        self, content: bytes, category: str | None
    ) -> tuple[dict[str, Any], Prediction, SampleRange | None]:
        """Answer, prediction, and the range that the image's samples were read over."""
        roster = self.champions.roster  # a change meanwhile is for the next request
        category = None if category is None else clean_name(category)
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
        answer = roster.describe(found, problem=self.champions.problem)
        self.metrics.verdicts.labels(found.category, answer["verdict"]).inc()
        await self.kept.keep(content, answer, found)
        return answer, found, roster.model.sample_range(category)


class _Kept:
    """Keeps answers and feedback, where an address was given; no full disk or slow S3 stops an answer."""

    def __init__(self, keeping: Keeping | None) -> None:
        self._keeping = keeping
        self.answers = None if keeping is None else Answers(keeping.address)
        self._works = True
        self._threads = ThreadPoolExecutor(_KEPT_AT_ONCE, "keep")
        self._late: set[asyncio.Future[None]] = set()

    async def keep(self, content: bytes, answer: dict[str, Any], found: Prediction) -> None:
        """Keep an answer, which waits for that a moment at most."""
        if self.answers is None or self._keeping is None:
            return
        if len(self._late) >= _LATE:
            self._note(SourceError(f"{self._keeping.address} does not follow"))
            return
        work = partial(self.answers.keep, answer, content, found, self._keeping)
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._late.add(done)
        done.add_done_callback(self._finish)
        await asyncio.wait([done], timeout=_KEEP_SECONDS if self._works else 0.0)

    def _finish(self, done: asyncio.Future[None]) -> None:
        self._late.discard(done)
        if not done.cancelled():
            self._note(done.exception())

    def _note(self, error: BaseException | None) -> None:
        """Log why answers are not kept, once."""
        if error is not None and self._works:
            is_expected = isinstance(error, (OSError, OneNIPError))
            log.warning("answers are not kept: %s", error, exc_info=None if is_expected else error)
        self._works = error is None

    async def take(self, feedback: Feedback) -> None:
        """Note feedback.

        Raises:
            HTTPException: 404 if the answer is not kept, 422 if boxes or mask do not fit it, 503 if nothing
                can be read or written.
        """
        await self._ask(lambda answers: answers.give_feedback(feedback))

    async def find_category(self, answer: str) -> str:
        """Category of a kept answer.

        Raises:
            HTTPException: as for `take`.
        """
        found = await self._ask(lambda answers: answers.find(answer))
        return str(found.facts["category"])

    async def _ask(self, work: Callable[[Answers], Any]) -> Any:
        if self.answers is None:
            raise HTTPException(_NOT_FOUND, "this server keeps no answers: start it with --recent")
        try:
            return await asyncio.to_thread(work, self.answers)
        except (MarkError, ImageError) as error:
            raise HTTPException(_UNPROCESSABLE, str(error)) from error
        except DataError as error:
            raise HTTPException(_NOT_FOUND, str(error)) from error
        except (OSError, OneNIPError) as error:
            log.error("kept answers cannot be reached: %s", error)
            raise HTTPException(
                _BUSY, "kept answers cannot be reached", {"Retry-After": "20"}
            ) from error


def build_app(champions: Follower, settings: ServeSettings) -> FastAPI:
    """The web application.

    Args:
        champions: the detectors; refreshed while the application runs.
        settings: limits and key.
    """
    metrics = _Metrics()
    queue = JudgingQueue(max_waiting=settings.max_waiting, batch_size=settings.batch_size)
    kept = _Kept(settings.keeping)
    judge = _Judge(champions, queue, metrics, kept)

    people = People(settings.people)
    identify = make_identify(people, settings.person_header, settings.proxies)

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
        response_model_exclude_unset=True,
        responses=REFUSALS,
        openapi_extra=describe_json(ImageRequest),
    )
    async def predict(request: Request) -> dict[str, Any]:
        """Judge an image that is sent as base64."""
        return await judge(*await read_json(request), has_map=_wants_map(request))

    @app.post(
        "/predict/file",
        dependencies=[_DESCRIBED_KEY],
        response_model=ImageAnswer,
        response_model_exclude_unset=True,
        responses=REFUSALS,
        openapi_extra=FORM_BODY,
    )
    async def predict_file(request: Request) -> dict[str, Any]:
        """Judge an image that is uploaded as a file."""
        return await judge(*await read_form(request), has_map=_wants_map(request))

    @app.post(
        "/feedback",
        dependencies=[_DESCRIBED_KEY],
        response_model=FeedbackAnswer,
        responses=REFUSALS,
        openapi_extra=describe_json(FeedbackRequest),
        status_code=201,
    )
    async def feedback(request: Request) -> dict[str, Any]:
        """Say what a part that was judged really is; a reviewer sees it next."""
        asked = await read_model(request, FeedbackRequest)
        values = asked.model_dump(exclude={"id"})
        try:
            person = await identify(request)
            if person is not None:
                person.require("inspector", await kept.find_category(asked.id))
                values["by"] = person.name
            elif people.is_listed:
                raise NotAllowedError("say who: HTTP Basic, a name of `onenip people`", status=401)
            said = Feedback(answer=asked.id, **values)
        except NotAllowedError as error:
            raise refuse(error) from error
        except OneNIPError as error:
            raise HTTPException(_UNPROCESSABLE, str(error)) from error
        await kept.take(said)
        metrics.feedback.labels(said.label).inc()
        return {"id": said.answer, "label": said.label, "by": said.by, "at": said.at}

    app.include_router(build_router(identify, _DESCRIBED_KEY))

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


def _wants_map(request: Request) -> bool:
    return MAP_OPTION in request.query_params.multi_items()


def _draw_map(content: bytes, found: Prediction, sample_range: SampleRange | None) -> str:
    """The heat map over an image as base64 of a PNG."""
    heat = draw_heat(
        load_image(content, sample_range=sample_range),
        found.map,
        pixel_threshold=found.pixel_threshold,
        regions=found.regions,
    )
    stream = BytesIO()
    Image.fromarray(heat).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


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
