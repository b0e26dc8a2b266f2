"""The code file that MLflow keeps with every version; the work is in `onenip.registry.pointer`."""

from mlflow.models import set_model

from onenip.registry.pointer import Pointer

set_model(Pointer())
