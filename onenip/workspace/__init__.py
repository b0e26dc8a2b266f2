"""A workspace: the folder of one plant, with its own Git repository, DVC set-up and params, but no code."""
