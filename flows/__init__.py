"""When and where the stages run: Prefect flows, which call and compute nothing themselves."""

from flows.settings import apply_settings

apply_settings()  # before any module of this package imports Prefect, which reads its settings then
