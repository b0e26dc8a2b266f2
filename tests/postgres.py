"""A real PostgreSQL from the distribution's packages, for tests; it refuses to run as root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret/with@signs"  # as a real one might, percent-encoded in a URL
ENCODED = "s3cret%2Fwith%40signs"


def find_binaries() -> Path | None:
    """Folder of PostgreSQL's programs, None if it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if folders:
        return folders[-1]
    found = shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def running_postgres(*databases: str) -> Iterator[dict[str, str]]:
    """URL of each database for the length of a block; skips the test where it cannot run."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    user = None
    if os.geteuid() == 0:
        user = "nobody"
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="onenip-postgres-"))
    if user:
        shutil.chown(folder, user)
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(*command: str) -> None:
        prefix = ["runuser", "-u", user, "--"] if user else []
        subprocess.run([*prefix, *command], cwd=folder, check=True, capture_output=True, timeout=60)

    data = str(folder / "data")
    control = [str(binaries / "pg_ctl"), "-D", data, "-w", "-t", "60"]
    call(
        str(binaries / "initdb"), "-D", data, "-U", "onenip", "--auth=scram-sha-256",
        f"--pwfile={password}", "--no-sync", "-E", "UTF8",
    )  # fmt: skip
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    call(*control, "-l", str(folder / "log"), "-o", options, "start")
    try:
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user="onenip", password=PASSWORD, dbname="postgres"
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name in databases:
                cursor.execute(f'CREATE DATABASE "{name}"')
        connection.close()
        yield {name: f"postgresql://onenip:{ENCODED}@127.0.0.1:{port}/{name}" for name in databases}
    finally:
        call(*control, "-m", "immediate", "stop")
        time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)
