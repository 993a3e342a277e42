"""How any service process of ours runs.

Here belongs what both services use, what names no tenant, model, price or usage event, and what could be published as
a library as it stands: the gRPC server and its interceptors, the error vocabulary and its codec, logs, metrics,
health, the graceful drain, the Postgres pool and migrations, the embedded Postgres and the launcher.
"""
