"""The stages: paths in, files out; one module per stage, no logic of their own."""
