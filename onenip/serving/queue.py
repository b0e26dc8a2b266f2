"""Queue of images, decoded and judged in batches by one worker; more than may wait are refused.

The images that wait while a batch is judged become the next one, up to the batch size; none waits for a
batch to fill. The batch size is 1 by default, so that a score never depends on its batch. An image is decoded
when its turn comes: those that wait are held as the files that came.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.detector.image_like import to_array
from onenip.detector.prediction import Prediction
from onenip.errors import OneNIPError
from onenip.images import load_image
from onenip.inference.by_category import ServedDetectors

_STOP_SECONDS = 5.0


class BusyQueueError(OneNIPError):
    """As many requests wait as may; try again in a moment."""


@dataclass(frozen=True)
class _Job:
    model: ServedDetectors
    content: bytes
    category: str | None
    answer: asyncio.Future[Prediction]


class JudgingQueue:
    """A queue with one worker.

    Args:
        max_waiting: images that may wait; one more is refused.
        batch_size: images that go through the network together.
    """

    def __init__(self, *, max_waiting: int, batch_size: int) -> None:
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(max_waiting)
        self._batch_size = batch_size
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the worker in the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer the images that wait, for a few seconds at most, then end the worker."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._jobs.join(), _STOP_SECONDS)
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return self._jobs.qsize()

    async def judge(
        self, model: ServedDetectors, content: bytes, category: str | None
    ) -> Prediction:
        """Prediction of an image file's bytes; category None infers it.

        Raises:
            BusyQueueError: if too many wait.
            DataError: if the category is unknown.
            ImageError: if the bytes are no usable image, or look like a category without a champion.
        """
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        try:
            self._jobs.put_nowait(_Job(model, content, category, answer))
        except asyncio.QueueFull as error:
            raise BusyQueueError("too many requests wait; try again in a moment") from error
        return await answer

    async def _work(self) -> None:
        while True:
            await self._answer_next()

    async def _answer_next(self) -> None:
        """Answer the next batch, and keep nothing of it: a map of 100 megapixels takes 400 MB."""
        batch = [await self._jobs.get()]
        while len(batch) < self._batch_size and not self._jobs.empty():
            batch.append(self._jobs.get_nowait())
        for jobs in _group(batch):
            found = await asyncio.to_thread(self._judge_together, jobs)
            for job, one in zip(jobs, found, strict=True):
                if not job.answer.cancelled():
                    _settle(job.answer, one)
        for _ in batch:
            self._jobs.task_done()

    def _judge_together(self, jobs: list[_Job]) -> list[Prediction | BaseException]:
        """Predictions of images of one model and category; an error is the answer of its own image."""
        images: dict[int, NDArray[np.uint8]] = {}
        found: dict[int, Prediction | BaseException] = {}
        for at, job in enumerate(jobs):
            try:
                if not job.answer.cancelled():
                    sample_range = job.model.sample_range(job.category)
                    decoded = load_image(job.content, sample_range=sample_range)
                    images[at] = to_array(decoded)  # a dark one fails alone
            except Exception as error:  # noqa: BLE001  # the worker goes on; the request fails
                found[at] = error
        predictions: Sequence[Prediction | BaseException]
        try:
            predictions = jobs[0].model.predict(
                list(images.values()), category=jobs[0].category, batch_size=max(1, len(images))
            )
        except Exception as error:  # noqa: BLE001
            predictions = [error] * len(images)
        found |= zip(images, predictions, strict=True)
        return [found.get(at, asyncio.CancelledError()) for at in range(len(jobs))]


def _settle(answer: asyncio.Future[Prediction], found: Prediction | BaseException) -> None:
    if isinstance(found, StopIteration):  # a future takes all but this one
        answer.set_exception(RuntimeError(f"{found!r}"))
    elif isinstance(found, BaseException):
        answer.set_exception(found)
    else:
        answer.set_result(found)


def _group(batch: list[_Job]) -> list[list[_Job]]:
    """Jobs that may go through the network together: of one model and one given category."""
    groups: dict[tuple[int, str | int], list[_Job]] = {}
    for at, job in enumerate(batch):
        key = (id(job.model), at if job.category is None else job.category)
        groups.setdefault(key, []).append(job)
    return list(groups.values())
