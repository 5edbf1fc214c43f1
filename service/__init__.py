"""The gRPC lookup service: its place; the pipeline in `batch_jobs` does not need it."""
