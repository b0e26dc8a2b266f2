"""Everything that runs by itself, on this machine: `make up` and `make down`.

    python -m flows.stack up        # start, wait until all answer, declare schedules, print addresses
    python -m flows.stack status    # what runs
    python -m flows.stack down      # stop all, and wait until they are gone

Starts Prefect's server, MLflow's server, a worker for each work pool, and an S3 server unless
AWS_ENDPOINT_URL or AWS credentials name one. SQLite by default; PREFECT_API_DATABASE_CONNECTION_URL
and MLFLOW_BACKEND_STORE_URI name PostgreSQL instead. State, logs and ports are in `.onenip/stack/`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.settings import STATE_DIR, apply_settings

apply_settings()

import httpx  # noqa: E402  # settings come first
import psutil  # noqa: E402
import typer  # noqa: E402
from tenacity import (  # noqa: E402
    RetryError,
    Retrying,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from onenip.errors import OneNIPError  # noqa: E402
from onenip.sources.local_s3 import start_s3  # noqa: E402

FOLDER = STATE_DIR / "stack"
PORTS = {"prefect": 4200, "mlflow": 5000, "s3": 8333}
POOLS = ("onenip-light", "onenip-training")
BUCKETS = ("dvc", "inbox", "mlflow")

_START_SECONDS = 180.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Service:
    """A process of the stack.

    Attributes:
        name: what it is.
        process_id: of the process that leads its group.
        started_at: when that process started, in seconds since 1970, so that another with the same number
            is not taken for it.
        address: where it answers; empty for workers.
    """

    name: str
    process_id: int
    started_at: float
    address: str = ""

    def is_running(self) -> bool:
        """Whether this very process is there."""
        try:
            process = psutil.Process(self.process_id)
            same = abs(process.create_time() - self.started_at) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def up() -> None:
    """Start what does not run yet, declare the schedules, print the addresses."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    services = {service.name: service for service in _read() if service.is_running()}
    env = _start_storage(services)
    prefect = f"http://127.0.0.1:{_port('prefect', services)}"
    mlflow = f"http://127.0.0.1:{_port('mlflow', services)}"
    env |= {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    python = [sys.executable, "-m"]
    port = prefect.rpartition(":")[2]
    _start(
        services, "prefect", [*python, "prefect", "server", "start", "--port", port], env, prefect
    )
    _start(services, "mlflow", _mlflow_command(mlflow, env), env, mlflow)
    _wait("prefect", f"{prefect}/api/health")
    _wait("mlflow", f"{mlflow}/health")
    _declare(env)
    for pool in POOLS:
        command = [*python, "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        _start(services, f"worker {pool}", command, env, "")
    _print(services, env)


@app.command()
def status() -> None:
    """Say what runs; exit status 1 if something of the stack does not."""
    services = _read()
    for service in services:
        state = "runs" if service.is_running() else "is down"
        typer.echo(f"{service.name:24} {state:8} {service.address}")
    if not services or not all(service.is_running() for service in services):
        raise typer.Exit(1)


@app.command()
def down() -> None:
    """Stop everything that `up` started, workers first, and wait until it is gone."""
    for service in reversed(_read()):
        if service.is_running():
            _stop(service.process_id)
            typer.echo(f"{service.name} stopped")
    (FOLDER / "services.json").unlink(missing_ok=True)


def _start_storage(services: dict[str, Service]) -> dict[str, str]:
    """Environment that names the S3 server; starts one if the user names none."""
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    port = PORTS["s3"]
    if "s3" in services:
        port = int(services["s3"].address.rpartition(":")[2])
    elif not _is_free(port):
        port = _free_port()
    if "s3" not in services:
        server = start_s3(FOLDER / "s3", buckets=BUCKETS, port=port, log=FOLDER / "s3.log")
        _note(services, "s3", server.process_id, server.endpoint)
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "onenip",
        "AWS_SECRET_ACCESS_KEY": "onenip-local-only",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _mlflow_command(address: str, env: Mapping[str, str]) -> list[str]:
    store = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
    own_s3 = "s3://mlflow" if "AWS_ENDPOINT_URL" in env else str(Path("mlartifacts").resolve())
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or own_s3
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--workers", "1", "--backend-store-uri", store]
    return [*command, "--artifacts-destination", artifacts]


def _start(
    services: dict[str, Service],
    name: str,
    command: list[str],
    env: Mapping[str, str],
    address: str,
) -> None:
    if name in services:
        return
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONUNBUFFERED": "1"}
    log = FOLDER / f"{name.replace(' ', '-')}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | dict(env) | quiet,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _note(services, name, process.pid, address)


def _note(services: dict[str, Service], name: str, process_id: int, address: str) -> None:
    """Remember a process at once, so that `down` finds it even if `up` is killed."""
    started_at = psutil.Process(process_id).create_time()
    services[name] = Service(name, process_id, started_at, address)
    path = FOLDER / "services.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(service) for service in services.values()], indent=2))
    os.replace(partial, path)


def _read() -> list[Service]:
    path = FOLDER / "services.json"
    if not path.is_file():
        return []
    return [Service(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _wait(name: str, address: str) -> None:
    """Wait until a server answers.

    Raises:
        OneNIPError: if it does not within three minutes.
    """
    attempts = Retrying(
        retry=retry_if_result(lambda answers: not answers),
        stop=stop_after_delay(_START_SECONDS),
        wait=wait_fixed(0.5),
    )
    try:
        attempts(_answers, address)
    except RetryError as error:
        raise OneNIPError(f"{name} did not start; see {FOLDER / name}.log") from error


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _declare(env: Mapping[str, str]) -> None:
    """Declare the deployments in a process of its own, which sees the new server's address."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.schedules"],
        env=os.environ | dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OneNIPError(f"the deployments could not be declared:\n{done.stderr[-2000:]}")


def _stop(process_id: int) -> None:
    """Stop a process and all that it started; the stubborn ones are killed."""
    try:
        leader = psutil.Process(process_id)
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS / 2)
    for process in alive:  # a worker may wait for a second one
        _signal(process.terminate)
    _, alive = psutil.wait_procs(alive, timeout=_STOP_SECONDS / 2)
    for process in alive:
        _signal(process.kill)
    psutil.wait_procs(alive, timeout=_STOP_SECONDS)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _print(services: Mapping[str, Service], env: Mapping[str, str]) -> None:
    for service in services.values():
        typer.echo(f"{service.name:24} {service.address or 'runs'}")
    typer.echo("\nFor your shell:")
    for key, value in env.items():
        typer.echo(f"  export {key}={value}")


def _port(name: str, services: Mapping[str, Service]) -> int:
    if name in services:
        return int(services[name].address.rpartition(":")[2])
    return PORTS[name] if _is_free(PORTS[name]) else _free_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    try:
        app()
    except OneNIPError as error:
        typer.echo(f"onenip: {error}", err=True)
        sys.exit(2)
