# syntax=docker/dockerfile:1
# Pin the base in a release: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:<digest>
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY worker_config worker_config
# From wheels only, so that no compiler is needed; into an environment without pip, so that the image has no installer.
# Byte code is made here: the service can not write any.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/ragherd \
    && pip --python /opt/ragherd/bin/python install --only-binary :all: --compile ".[onnx]"

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Ragherd" \
      org.opencontainers.image.description="A RAG query service in front of Ollama whose workers and replicas share one memory in Redis" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The base's pip is not needed to run.
RUN python -m pip uninstall --yes --root-user-action ignore pip
COPY --from=build /opt/ragherd /opt/ragherd
WORKDIR /opt/ragherd
ENV PATH=/opt/ragherd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    EMBEDDER=onnx \
    PROMETHEUS_MULTIPROC_DIR=/tmp/ragherd-metrics
# A number, so that Kubernetes can see that it is not root. Nothing is written but below /tmp: run with
# --read-only --tmpfs /tmp. Prometheus's directory has a fixed name there, so that a restart empties it.
USER 10001:10001
EXPOSE 8001 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; connection = HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8001), timeout=2); connection.request('GET', '/health/ready'); sys.exit(connection.getresponse().status != 200)"]
# gunicorn is process 1: SIGTERM drains. Give it DRAIN_DELAY + GRACEFUL_TIMEOUT + 5 s (docker stop --time 45).
ENTRYPOINT ["gunicorn", "-c", "python:worker_config.gunicorn_conf"]
CMD ["api.asgi:app"]
