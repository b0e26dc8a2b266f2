"""When and where the stages run: Prefect flows, which call and compute nothing themselves."""
