"""Everything that runs by itself, on this machine: `onenip up` and `onenip down`.

    python -m flows.stack status    # what runs; `up` and `down` are there, too

Starts Prefect's server, MLflow's server, a worker for each work pool, and an S3 server unless
AWS_ENDPOINT_URL or AWS credentials name one. SQLite by default; PREFECT_API_DATABASE_CONNECTION_URL
and MLFLOW_BACKEND_STORE_URI name PostgreSQL instead. State, logs and ports are in `.onenip/stack/`, and so
are the servers' credentials: drawn at the first start, readable by their owner alone.
"""

from __future__ import annotations

import base64
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from filelock import FileLock, Timeout

from flows.databases import MLFLOW, PREFECT, describe_database, read_databases
from flows.local_s3 import start_s3
from flows.services import ServiceError, Services
from flows.settings import LIGHT_POOL, STATE_DIR, TRAINING_POOL
from onenip.addresses import pass_by_proxy
from onenip.data.outputs import OUTPUTS
from onenip.errors import BusyError, OneNIPError
from onenip.folders import write_whole
from onenip.params import Params
from onenip.registry.runs import find_page
from onenip.stages.process import NICENESS, set_session_niceness

FOLDER = STATE_DIR / "stack"
PORTS = {"prefect": 4200, "mlflow": 5000, "s3": 8333}
BUCKETS = ("dvc", "inbox", "mlflow")
ACCOUNT = "onenip"  # on each of the servers; what `up` draws is the password
ENVIRONMENT = FOLDER / "env"

_ACCOUNTS = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{database}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def up() -> None:
    """Start what does not run yet, declare the deployments, print the addresses."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    STATE_DIR.chmod(0o700)  # credentials, databases and logs are nobody else's
    try:
        with FileLock(FOLDER / "up.lock", timeout=0):
            _up()
    except Timeout as error:
        raise BusyError("another `up` is at work in this checkout") from error


def _up() -> None:
    params = Params.load()  # a mistake there is an error before anything starts
    databases = read_databases(mlflow=f"sqlite:///{Path('mlflow.db').resolve()}")
    services = Services(FOLDER)
    env = _start_storage(services)
    prefect = f"http://127.0.0.1:{services.choose_port('prefect', PORTS['prefect'])}"
    mlflow = f"http://127.0.0.1:{services.choose_port('mlflow', PORTS['mlflow'])}"
    env |= {
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_API_AUTH_STRING": f"{ACCOUNT}:{_read_secret('prefect')}",
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_TRACKING_USERNAME": ACCOUNT,
        "MLFLOW_TRACKING_PASSWORD": _read_secret("mlflow"),
    }
    python = [sys.executable, "-m"]
    everybody = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
    server = services.start(
        "prefect",
        [*python, "prefect", "server", "start", "--port", prefect.rpartition(":")[2]],
        env=everybody | _prefect_settings(prefect, env) | databases,
        address=prefect,
    )
    tracker = services.start(
        "mlflow",
        _mlflow_command(mlflow, env),
        env=everybody | _mlflow_settings(mlflow, env) | databases,
        address=mlflow,
    )
    services.wait_for(server, f"{prefect}/api/health")
    services.wait_for(tracker, f"{mlflow}/health")
    _run([*python, "flows.deploy"], everybody)
    for pool in (LIGHT_POOL, TRAINING_POOL):
        command = [*python, "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        if pool == TRAINING_POOL:  # a server beside it keeps its speed
            command = ["nice", "-n", str(NICENESS), *command]
        worker = services.start(f"worker {pool}", command, env=everybody)
        if pool == TRAINING_POOL:
            set_session_niceness(worker.process_id)
    _write_environment(env)
    _print(services, databases)
    os.environ.update(env)  # of this process alone, which ends with `up`
    typer.echo(f"Trainings in MLflow:  {find_page()}")
    if params.notify.webhook is not None:  # last: all else works without it
        _run([*python, "onenip", "webhooks"], everybody)


@app.command()
def status() -> None:
    """Print what runs; exit status 1 if something of the stack does not."""
    services = list(Services(FOLDER))
    for service in services:
        state = "runs" if service.is_running() else "is down"
        typer.echo(f"{service.name:24} {state:8} {service.address}")
    if not services or not all(service.is_running() for service in services):
        raise typer.Exit(1)


@app.command()
def down() -> None:
    """Stop everything that `up` started, workers first, and wait until it is gone."""
    for service in Services(FOLDER).stop_all():
        typer.echo(f"{service.name} stopped")


def _start_storage(services: Services) -> dict[str, str]:
    """Environment that names the S3 server; starts one if the user names none but this."""
    names_one = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ACCESS_KEY_ID")
    secret = _read_secret("s3")
    if names_one and os.environ.get("AWS_SECRET_ACCESS_KEY") != secret:
        return {}
    running = services.find("s3")
    if running is None:
        port = services.choose_port("s3", PORTS["s3"])
        server = start_s3(
            FOLDER / "s3",
            buckets=BUCKETS,
            access_key=ACCOUNT,
            secret_key=secret,
            port=port,
            log=services.log_of("s3"),
        )
        running = services.note("s3", server.process_id, server.endpoint)
    return {
        "AWS_ENDPOINT_URL": running.address,
        "AWS_ACCESS_KEY_ID": ACCOUNT,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _prefect_settings(address: str, env: Mapping[str, str]) -> dict[str, str]:
    """Settings of Prefect's server: the password it asks for, and whose pages may call it.

    Concurrency leases are kept in files: in memory, a restart would forget them for ever.
    """
    defaults = {
        "PREFECT_SERVER_API_AUTH_STRING": env["PREFECT_API_AUTH_STRING"],
        "PREFECT_UI_STATIC_DIRECTORY": str((FOLDER / "page").resolve()),  # not among the packages
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(_list_origins(address)),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
    }
    return {key: os.environ.get(key, value) for key, value in defaults.items()}


def _mlflow_settings(address: str, env: Mapping[str, str]) -> dict[str, str]:
    """Settings of MLflow's server: the account it asks for, and which hosts and origins it answers.

    Webhooks may go to a house's own network; their secrets stay readable after a restart.
    """
    accounts = FOLDER / "mlflow_accounts.ini"
    database = (FOLDER / "mlflow_accounts.db").resolve()
    accounts.write_text(_ACCOUNTS.format(database=database), encoding="utf-8")
    origins = _list_origins(address)
    defaults = {
        "MLFLOW_AUTH_CONFIG_PATH": str(accounts.resolve()),
        "MLFLOW_AUTH_ADMIN_USERNAME": env["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": env["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _read_secret("mlflow_forms"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(one.partition("//")[2] for one in origins),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    settings = {key: os.environ.get(key, value) for key, value in defaults.items()}
    variable = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
    return settings | {variable: os.environ.get(variable) or _read_secret("webhooks")}


def _read_secret(name: str) -> str:
    """A secret of 256 bits in URL-safe base64, from a file that only its owner may read; drawn if absent."""
    path = FOLDER / f"{name}.key"
    if not path.is_file():
        with write_whole(path) as draft:
            draft.touch(mode=0o600)
            draft.write_bytes(base64.urlsafe_b64encode(secrets.token_bytes(32)))
    return path.read_text(encoding="ascii")


def _write_environment(env: Mapping[str, str]) -> None:
    """Write what a shell needs to use the servers, to a file that only its owner may read."""
    with write_whole(ENVIRONMENT) as draft:
        draft.touch(mode=0o600)
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in env.items()]
        draft.write_text("".join(lines), encoding="utf-8")


def _list_origins(address: str) -> list[str]:
    """A server's own pages, by either name of this machine."""
    return [address, address.replace("127.0.0.1", "localhost")]


def _mlflow_command(address: str, env: Mapping[str, str]) -> list[str]:
    own_s3 = "s3://mlflow" if "AWS_ENDPOINT_URL" in env else str(Path("mlartifacts").resolve())
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or own_s3
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    return [
        *command,
        "--app-name",
        "basic-auth",
        "--workers",
        "1",
        "--artifacts-destination",
        artifacts,
    ]


def _run(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a command in a process of its own, which sees the new servers' addresses.

    Raises:
        ServiceError: with the last line that it wrote, if it fails.
    """
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("onenip: ") if lines else f"exit status {done.returncode}"
        raise ServiceError(f"`{' '.join(command[2:])}` failed: {reason}")


def _print(services: Services, databases: Mapping[str, str]) -> None:
    kinds = {"prefect": PREFECT, "mlflow": MLFLOW}
    for service in services:
        line = f"{service.name:24} {service.address or 'runs'}"
        if service.name in kinds:
            line += f"  ({describe_database(databases.get(kinds[service.name], 'sqlite'))})"
        typer.echo(line)
    typer.echo(f"\nFor your shell:  source {ENVIRONMENT}")
    typer.echo(
        "Prefect's page asks for PREFECT_API_AUTH_STRING in it, MLflow's for its user and password."
    )
    typer.echo(
        f"Then, for the line:  onenip serve --recent {OUTPUTS.recent};  for people:  onenip inspect"
    )


if __name__ == "__main__":
    pass_by_proxy()
    try:
        app()
    except OneNIPError as error:
        typer.echo(f"onenip: {error}", err=True)
        sys.exit(2)
