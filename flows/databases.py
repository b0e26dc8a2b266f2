"""Databases of the two servers: SQLite unless a URL in the environment names PostgreSQL.

    PREFECT_API_DATABASE_CONNECTION_URL=postgresql://user:password@host/prefect
    MLFLOW_BACKEND_STORE_URI=postgresql://user:password@host/mlflow

Either is written as psql takes it; the driver that each server needs is filled in. Passwords stay in
the environment: neither printed nor on a command line.
"""

from __future__ import annotations

import os

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from onenip.errors import OneNIPError

PREFECT = "PREFECT_API_DATABASE_CONNECTION_URL"
MLFLOW = "MLFLOW_BACKEND_STORE_URI"

_DRIVERS = {PREFECT: "postgresql+asyncpg", MLFLOW: "postgresql+psycopg2"}
_CONNECT_SECONDS = 10


class DatabaseError(OneNIPError):
    """A server's database cannot be used; the message names the variable."""


def read_databases(*, mlflow: str) -> dict[str, str]:
    """Environment that names the databases, with the drivers that the servers need.

    Args:
        mlflow: MLflow's database where the environment names none.

    Raises:
        DatabaseError: if a URL is malformed, or PostgreSQL does not answer.
    """
    found = {MLFLOW: mlflow}
    for variable, driver in _DRIVERS.items():
        text = os.environ.get(variable, "")
        if text.startswith(("postgres:", "postgresql")):
            url = _parse(variable, text.replace("postgres:", "postgresql:", 1))
            _require_answer(variable, url.set(drivername="postgresql+psycopg2"))
            url = url if "+" in url.drivername else url.set(drivername=driver)
            text = url.render_as_string(hide_password=False)
        if text:
            found[variable] = text
    return found


def describe_database(url: str) -> str:
    """A database in words, without its password."""
    if url.startswith("postgresql"):
        parsed = make_url(url)
        return f"PostgreSQL {parsed.host or 'localhost'}/{parsed.database}"
    return "SQLite" if url.startswith("sqlite") else "its own database"


def _parse(variable: str, text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError) as error:
        raise DatabaseError(f"{variable}: not a database URL") from error


def _require_answer(variable: str, url: URL) -> None:
    """Connect once, before a server takes minutes to say the same.

    Raises:
        DatabaseError: if the driver is missing, or the database does not let us in.
    """
    try:
        engine = create_engine(url, connect_args={"connect_timeout": _CONNECT_SECONDS})
        with engine.connect():
            pass
    except ModuleNotFoundError as error:
        raise DatabaseError(f"{variable}: `pip install 'onenip[postgres]'` first") from error
    except (SQLAlchemyError, UnicodeError) as error:
        lines = str(getattr(error, "orig", error)).strip().splitlines()
        reason = lines[-1].strip() if lines else type(error).__name__
        where = url.render_as_string(hide_password=True)
        raise DatabaseError(f"{variable}: {where} does not answer: {reason}") from error
    engine.dispose()
