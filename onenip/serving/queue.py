"""Requests judged in turn: what waits is gathered into batches, and too much waiting is refused.

What waits while a batch is judged becomes the next one; nobody waits for a batch to fill. Of a batch, as
many images go through the network together as asked for: one, unless told otherwise, so that a score
never depends on its batch.
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

_GATHERED = 8  # jobs that are handed to the worker thread together: fewer hand-overs


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
            while len(batch) < max(self._batch_size, _GATHERED) and not self._jobs.empty():
                batch.append(self._jobs.get_nowait())
            outcomes = await asyncio.to_thread(_judge_all, batch, self._batch_size)
            for job, outcome in zip(batch, outcomes, strict=True):
                self._jobs.task_done()
                if job.answer.cancelled():
                    continue
                if isinstance(outcome, Prediction):
                    job.answer.set_result(outcome)
                else:
                    job.answer.set_exception(outcome)


def _judge_all(batch: list[_Job], batch_size: int) -> list[Prediction | OneNIPError]:
    """Answers in the order of the jobs; those that one detector judges as one category go together."""
    groups: dict[tuple[int, str | None], list[int]] = {}
    for i, job in enumerate(batch):
        groups.setdefault((id(job.serving.detector), job.category), []).append(i)
    outcomes: dict[int, Prediction | OneNIPError] = {}
    for (_, category), places in groups.items():
        images = [batch[i].image for i in places]
        detector = batch[places[0]].serving.detector
        try:
            found = detector.predict(images, category=category, batch_size=batch_size)
        except OneNIPError as error:
            outcomes |= dict.fromkeys(places, error)
        else:
            outcomes |= zip(places, found, strict=True)
    return [outcomes[i] for i in range(len(batch))]
