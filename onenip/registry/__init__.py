"""Runs, registered models and approvals: the one package that knows MLflow.

- `store`: where MLflow keeps things, and how its refusals become `RegistryError`
- `tracking`: the run of a training, followed by the later stages
- `versions`: registered models `onenip-<category>`, their versions, aliases and tags
- `publishing`: the unified model stored once, and a version per category that points at it
- `approval`: approve, reject, roll back; what was approved is what is loaded
- `audit`: the append-only record of who did what, and of what somebody did by hand
- `pointer`: what MLflow itself runs when it serves one of these versions
"""
