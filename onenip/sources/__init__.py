"""Where images come from: one module per kind of source; the only place that knows boto3."""
