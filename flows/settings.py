"""Settings of Prefect that must stand in the environment before it is imported; names of its work pools."""

from __future__ import annotations

import logging
import os
from pathlib import Path

STATE_DIR = Path(".onenip")
LIGHT_POOL, TRAINING_POOL = "onenip-light", "onenip-training"


def apply_settings(*, root: Path = Path()) -> None:
    """Set what this product needs where the user has not set it.

    Prefect's own state is kept in the checkout, a server started on the fly gets time to start, and the
    library's log lines join the flow run.
    """
    (root / STATE_DIR).mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str((root / STATE_DIR / "prefect").resolve()),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",  # a busy machine
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # that page asks amplitude.com for settings
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "onenip",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # about eight minutes: a server may be started again
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    # Prefect gives the extra loggers its handlers, but no level: without one only warnings get through
    logging.getLogger("onenip").setLevel(logging.INFO)
