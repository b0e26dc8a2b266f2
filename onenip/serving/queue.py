"""Queue of requests, judged in batches by one worker; more requests than may wait are refused.

The requests that wait while a batch is judged become the next one, up to the batch size; no request waits
for a batch to fill. The batch size is 1 by default, so that a score never depends on its batch.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.detector.prediction import Prediction
from onenip.errors import OneNIPError
from onenip.inference.by_category import ServedDetectors


class BusyQueueError(OneNIPError):
    """As many requests wait as may; try again in a moment."""


@dataclass(frozen=True)
class _Job:
    model: ServedDetectors
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
        self, model: ServedDetectors, image: NDArray[np.uint8], category: str | None
    ) -> Prediction:
        """Prediction of an image [H, W, 3] uint8; category None infers it.

        Raises:
            BusyQueueError: if too many wait.
            DataError: if the category is unknown.
            ImageError: if no category is given, and the image looks like one without a champion.
        """
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        try:
            self._jobs.put_nowait(_Job(model, image, category, answer))
        except asyncio.QueueFull as error:
            raise BusyQueueError("too many requests wait; try again in a moment") from error
        return await answer

    async def _work(self) -> None:
        while True:
            batch = [await self._jobs.get()]
            while len(batch) < self._batch_size and not self._jobs.empty():
                batch.append(self._jobs.get_nowait())
            for jobs in _group(batch):
                await self._judge_together(jobs)

    async def _judge_together(self, jobs: list[_Job]) -> None:
        """Answer jobs of one model and category; an error is their answer, and the worker goes on."""
        first = jobs[0]
        judging = asyncio.to_thread(
            first.model.predict,
            [job.image for job in jobs],
            category=first.category,
            batch_size=len(jobs),
        )
        (found,) = await asyncio.gather(judging, return_exceptions=True)
        for at, job in enumerate(jobs):
            self._jobs.task_done()
            if job.answer.cancelled():
                continue
            if isinstance(found, BaseException):
                job.answer.set_exception(found)
            else:
                job.answer.set_result(found[at])


def _group(batch: list[_Job]) -> list[list[_Job]]:
    """Jobs that may go through the network together: of one model and one given category."""
    groups: dict[tuple[int, str | int], list[_Job]] = {}
    for at, job in enumerate(batch):
        groups.setdefault((id(job.model), at if job.category is None else job.category), []).append(
            job
        )
    return list(groups.values())
