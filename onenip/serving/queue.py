"""Requests judged in turn: what waits is gathered into batches, and too much waiting is refused.

The detector judges images one at a time, so that a score never depends on its batch; gathering
spares the hand-over to the worker thread for each image.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.errors import OneNIPError
from onenip.prediction import Prediction
from onenip.serving.champions import Serving


class BusyQueueError(OneNIPError):
    """As many requests wait as may; try again in a moment."""


@dataclass(frozen=True)
class _Job:
    serving: Serving
    image: NDArray[np.uint8]
    category: str | None
    answer: asyncio.Future[Prediction]


class JudgingQueue:
    """A queue with one worker.

    Args:
        max_waiting: jobs that may wait; one more is refused.
        max_batch: jobs that are handed to the worker thread together.
    """

    def __init__(self, *, max_waiting: int, max_batch: int) -> None:
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(max_waiting)
        self._max_batch = max_batch
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the worker in the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer what waits, then end the worker."""
        await self._jobs.join()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    async def judge(
        self, serving: Serving, image: NDArray[np.uint8], category: str | None
    ) -> Prediction:
        """What a detector says of an image [H, W, 3] uint8.

        Raises:
            BusyQueueError: if too many wait.
            DataError: if the detector does not know the category.
        """
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        try:
            self._jobs.put_nowait(_Job(serving, image, category, answer))
        except asyncio.QueueFull as error:
            raise BusyQueueError("too many requests wait; try again in a moment") from error
        return await answer

    async def _work(self) -> None:
        while True:
            batch = [await self._jobs.get()]
            while len(batch) < self._max_batch and not self._jobs.empty():
                batch.append(self._jobs.get_nowait())
            outcomes = await asyncio.to_thread(_judge_all, batch)
            for job, outcome in zip(batch, outcomes, strict=True):
                self._jobs.task_done()
                if job.answer.cancelled():
                    continue
                if isinstance(outcome, Prediction):
                    job.answer.set_result(outcome)
                else:
                    job.answer.set_exception(outcome)


def _judge_all(batch: list[_Job]) -> list[Prediction | OneNIPError]:
    outcomes: list[Prediction | OneNIPError] = []
    for job in batch:
        try:
            outcomes += job.serving.detector.predict([job.image], category=job.category)
        except OneNIPError as error:
            outcomes.append(error)
    return outcomes
