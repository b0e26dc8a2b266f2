"""The MLflow run of a training: params, live losses, the model that came out.

Training never waits for a server. Values are written to a file of this checkout first and sent by
a thread; what could not be sent is kept there and goes out when MLflow can be reached again. A
training that was killed and started again with the same params, data and code goes on in its run.

    with training_run(params.dump(), manifest=manifest) as run:
        result = train(..., on_log=run.log)
        run.name_model(result.digest)

The run's identifier lies in `artifacts/tracking/`, beside the outputs that DVC watches, not in
them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from onenip.data.outputs import OUTPUTS
from onenip.errors import RegistryError
from onenip.registry import runs, store
from onenip.registry.environment import flatten, hash_code
from onenip.registry.runs import RunRecord, Value

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


_SEND_SECONDS = 2.0  # how long a value waits for company
_MAX_PAUSE_SECONDS = 60.0  # between attempts to reach a server that is down


@contextmanager
def training_run(
    params: Mapping[str, Any],
    *,
    manifest: Path,
    tags: Mapping[str, str] | None = None,
    experiment: str = runs.EXPERIMENT,
    folder: Path = OUTPUTS.tracking,
) -> Iterator[TrackedRun]:
    """The run of one training; the unfinished one of this checkout if it is the same training.

    Args:
        params: nested values, as `Params.dump` gives them.
        manifest: the data that is trained on; trainings on other content are other trainings.
        tags: further facts, such as `data_version` and `git_commit`.
        experiment: MLflow experiment.
        folder: where this checkout remembers its run.
    """
    flat = flatten(params)
    wanted = RunRecord(
        tracking_uri=store.tracking_uri(),
        experiment=experiment,
        fingerprint=_fingerprint(flat, manifest),
        params=flat,
        tags=dict(tags or {}),
    )
    record = runs.read_record(folder)
    if record is None or not _goes_on(record, wanted):
        _set_aside(folder, record)
        record = wanted
    run = TrackedRun(record, folder=folder)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.close(status=status)


def deliver(folder: Path = OUTPUTS.tracking) -> RunRecord | None:
    """Send what the last training could not send, and return its record; None if there is none.

    MLflow being out of reach is a warning here too: nothing is lost.
    """
    record = runs.read_record(folder)
    if record is None or record.is_sent or record.tracking_uri != store.tracking_uri():
        return record
    if record.status == "RUNNING":  # killed, or at work: its own process will send
        return record
    run = TrackedRun(record, folder=folder)
    run.close(status=record.status)
    return runs.read_record(folder)


class TrackedRun:
    """A run that takes values at any time and sends them when it can.

    Args:
        record: which run; continued if it has an identifier.
        folder: where the record and unsent values are kept.
    """

    def __init__(self, record: RunRecord, *, folder: Path) -> None:
        self._record = record
        self._folder = folder
        self._last_steps: dict[str, int] | None = None  # None until the run is open
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_warned = False
        self._is_spool_warned = False
        self._update({"status": "RUNNING", "is_sent": False})
        self._unsent = _read_unsent(_unsent_path(folder))
        self._spool = _unsent_path(folder).open("w", encoding="utf-8")
        self._rewrite_spool()
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        """MLflow's identifier; empty while the store has not been reached."""
        return self._record.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take values of a step; returns at once and never fails for want of a server.

        Args:
            step: optimiser steps so far.
            values: names such as `train/loss` and their values.
        """
        now = int(time.time() * 1000)
        with self._lock:
            fresh = [
                Value(key=key, value=float(value), step=step, timestamp_ms=now)
                for key, value in values.items()
            ]
            self._unsent += fresh
            self._keep(fresh)

    def name_model(self, digest: str) -> None:
        """Say which model the training made; later stages find the run by its digest."""
        self._update({"tags": {**self._record.tags, runs.DIGEST_TAG: digest}})

    def close(self, *, status: str) -> None:
        """Send what is left and end the run; never fails, whatever MLflow or the disk does.

        Args:
            status: MLflow's word: FINISHED, FAILED or KILLED.
        """
        self._closing.set()
        self._thread.join()
        self._update({"status": status})
        if self._attempt(lambda client: self._end(client, status)):
            self._update({"is_sent": True})
        with suppress(OSError):
            self._spool.close()
        if self._unsent:
            path = _unsent_path(self._folder)
            logger.warning("%d values wait for MLflow in %s", len(self._unsent), path)

    def _end(self, client: MlflowClient, status: str) -> None:
        self._send(client)
        runs.send_tags(client, self.run_id, self._record.tags)
        client.set_terminated(self.run_id, status=status)

    def _send_until_closed(self) -> None:
        pause = _SEND_SECONDS
        while not self._closing.is_set():
            is_sent = self._attempt(self._send)
            pause = _SEND_SECONDS if is_sent else min(2 * pause, _MAX_PAUSE_SECONDS)
            self._closing.wait(pause)

    def _attempt(self, work: Callable[[MlflowClient], None]) -> bool:
        """Whether MLflow took it; that it did not is logged once, until it does again."""
        from mlflow.exceptions import MlflowException

        try:
            self._client = self._client or store.connect(create=True)
            work(self._client)
        except Exception as error:  # training must not end for want of its log
            if not self._is_warned:
                is_expected = isinstance(error, (MlflowException, RegistryError))
                reason = store.shorten((str(error) or type(error).__name__).splitlines()[0])
                logger.warning(
                    "MLflow cannot be written to; training goes on, values wait: %s",
                    reason,
                    exc_info=not is_expected,
                )
            self._is_warned = True
            return False
        self._is_warned = False
        return True

    def _send(self, client: MlflowClient) -> None:
        steps = self._last_steps if self._last_steps is not None else self._open(client)
        with self._lock:
            batch = list(self._unsent)
        if not batch:
            return
        fresh = [item for item in batch if item.step > steps.get(item.key, -1)]
        runs.send_values(client, self.run_id, fresh)
        steps.update({item.key: item.step for item in fresh})
        with self._lock:
            del self._unsent[: len(batch)]
            self._rewrite_spool()

    def _open(self, client: MlflowClient) -> dict[str, int]:
        """Continue the run, or create it; the last step that it already holds of each metric."""
        if self.run_id:
            client.update_run(self.run_id, status="RUNNING")
            self._last_steps = runs.last_steps(client, self.run_id)
        else:
            self._update({"run_id": runs.create_run(client, self._record)})
            self._last_steps = {}
        return self._last_steps

    def _update(self, changes: Mapping[str, Any]) -> None:
        self._record = self._record.model_copy(update=dict(changes))
        try:
            runs.write_record(self._folder, self._record)
        except OSError as error:
            logger.warning("%s: the run is not remembered here: %s", self._folder, error)

    def _keep(self, values: Iterable[Value]) -> None:
        """Write values to the file that outlives this process; the caller holds the lock."""
        try:
            self._spool.writelines(item.model_dump_json() + "\n" for item in values)
            self._spool.flush()
        except (OSError, ValueError) as error:  # a full disk; closed, because it was full
            if not self._is_spool_warned:
                logger.warning("%s: values are kept in memory: %s", self._folder, error)
            self._is_spool_warned = True

    def _rewrite_spool(self) -> None:
        with suppress(OSError, ValueError):
            self._spool.seek(0)
            self._spool.truncate()
        self._keep(self._unsent)


def _goes_on(record: RunRecord, wanted: RunRecord) -> bool:
    """Whether a recorded run did not finish and is the same training in the same store."""
    return record.status != "FINISHED" and all(
        getattr(record, name) == getattr(wanted, name)
        for name in ("fingerprint", "tracking_uri", "experiment")
    )


def _set_aside(folder: Path, record: RunRecord | None) -> None:
    """Deliver an earlier run's values; if that fails, keep them under the name of its training."""
    if record is not None and record.status != "RUNNING":
        record = deliver(folder)
    unsent = _unsent_path(folder)
    if record is not None and unsent.is_file() and unsent.stat().st_size:
        unsent.rename(folder / f"unsent-{record.fingerprint[:8]}.jsonl")
    unsent.unlink(missing_ok=True)


def _fingerprint(params: Mapping[str, str], manifest: Path) -> str:
    content = manifest.read_bytes() if manifest.is_file() else b""
    parts = [json.dumps(params, sort_keys=True).encode(), content, hash_code().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _unsent_path(folder: Path) -> Path:
    return folder / "unsent.jsonl"


def _read_unsent(path: Path) -> list[Value]:
    """Values that an earlier process could not send; a line that is cut off or damaged is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            found.append(Value.model_validate_json(line))
        except ValidationError:
            logger.warning("%s: a damaged line is left out", path)
    return found
