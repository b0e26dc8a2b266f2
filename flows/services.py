"""Processes that outlive the command that started them: started, remembered, watched, stopped.

Knows processes and ports; which ones the product needs is said in `flows.stack`.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from onenip.errors import OneNIPError
from onenip.folders import write_whole

_TWIN = 10_000  # so far above each of its ports SeaweedFS opens another
_START_SECONDS = 600.0
_STOP_SECONDS = 50.0


class ServiceError(OneNIPError):
    """A process of the stack cannot be started; the message says why, or where its log is."""


@dataclass(frozen=True)
class Service:
    """A process of the stack.

    Attributes:
        name: what it is.
        process_id: of the process that leads its session.
        started_at: when that process started, in seconds since 1970, so that another with the same number
            is not taken for it.
        address: where it answers; empty for workers.
    """

    name: str
    process_id: int
    started_at: float
    address: str = ""

    @property
    def port(self) -> int:
        """Port of the address."""
        return int(self.address.rpartition(":")[2])

    def is_running(self) -> bool:
        """Whether this very process is there."""
        try:
            process = psutil.Process(self.process_id)
            same = abs(process.create_time() - self.started_at) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        """Stop it with all that it started, also what outlived it; the stubborn are killed."""
        family = self._list_family()
        alive = family
        for _ in range(2):  # a worker may wait for a second signal
            for process in alive:
                _signal(process.terminate)
            _, alive = psutil.wait_procs(alive, timeout=_STOP_SECONDS / 2)
        for process in alive:
            _signal(process.kill)
        psutil.wait_procs(alive, timeout=_STOP_SECONDS)

    def _list_family(self) -> list[psutil.Process]:
        """Children, and what is left of the session of a leader that was killed."""
        family = []
        if self.is_running():
            leader = psutil.Process(self.process_id)
            family = [leader, *leader.children(recursive=True)]
        for process in psutil.process_iter():
            try:
                in_session = os.getsid(process.pid) == self.process_id
                is_ours = in_session and process.create_time() > self.started_at - 1.0
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
            if is_ours and process not in family:
                family.append(process)
        return family


class Services:
    """What was started from one folder, written down at once so that a kill hides none.

    Args:
        folder: for `services.json` and a log per process; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "services.json"
        self._known: dict[str, Service] = {}
        if self._path.is_file():
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = {values["name"]: Service(**values) for values in content}

    def __iter__(self) -> Iterator[Service]:
        """In the order in which they were started first."""
        return iter(list(self._known.values()))

    def find(self, name: str) -> Service | None:
        """A process that runs, None if it does not."""
        service = self._known.get(name)
        return service if service is not None and service.is_running() else None

    def log_of(self, name: str) -> Path:
        """File that a process writes to."""
        return self._folder / f"{name.replace(' ', '-')}.log"

    def choose_port(self, name: str, preferred: int) -> int:
        """Port of a process: the one that it has or had, else the preferred one, else a free one.

        Raises:
            ServiceError: if the port that it had, and that others know, is taken by a stranger.
        """
        known = self._known.get(name)
        if known is None:
            return preferred if is_free(preferred) else find_free_port()
        if not known.is_running():
            known.stop()  # a server's children may hold the port
            if not is_free(known.port):
                raise ServiceError(
                    f"{name}: another program took its port {known.port}; end that program, or "
                    "run `down` and `up` for new ports"
                )
        return known.port

    def start(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], address: str = ""
    ) -> Service:
        """The running process of this name; started in a session of its own if there is none."""
        running = self.find(name)
        if running is not None:
            return running
        with self.log_of(name).open("ab") as output:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.note(name, process.pid, address)

    def note(self, name: str, process_id: int, address: str) -> Service:
        """Remember a process that was started."""
        service = Service(name, process_id, psutil.Process(process_id).create_time(), address)
        self._known[name] = service
        content = [asdict(one) for one in self._known.values()]
        with write_whole(self._path) as draft:
            draft.write_text(json.dumps(content, indent=2), encoding="utf-8")
        return service

    def wait_for(self, service: Service, health: str) -> None:
        """Wait until a server answers.

        Raises:
            ServiceError: if it ended, or does not answer within ten minutes.
        """
        attempts = Retrying(
            retry=retry_if_result(lambda is_done: not is_done),
            stop=stop_after_delay(_START_SECONDS),
            wait=wait_fixed(0.5),
        )
        try:
            attempts(lambda: _answers(health) or not service.is_running())
        except RetryError as error:
            log = self.log_of(service.name)
            raise ServiceError(f"{service.name} does not answer at {health}; see {log}") from error
        if not service.is_running():
            log = self.log_of(service.name)
            raise ServiceError(f"{service.name} ended at once: {_last_line(log)}; see {log}")

    def stop_all(self) -> list[Service]:
        """Stop everything, what was started last first; those that ran."""
        stopped = []
        for service in reversed(list(self)):
            if service.is_running():
                stopped.append(service)
            service.stop()
        self._path.unlink(missing_ok=True)
        self._known = {}
        return stopped


def is_free(port: int) -> bool:
    """Whether a port of this machine can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_free_port() -> int:
    """A port that nobody listens on, nor on its twin, below those that the system hands out itself."""
    generator = random.SystemRandom()
    while True:
        port = generator.randrange(10_500, 22_000)
        if is_free(port) and is_free(port + _TWIN):
            return port


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it wrote nothing"


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
