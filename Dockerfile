# The base is pinned by its tag, for people, and by the digest of its index (amd64, arm64), for the builder. To update it:
#   docker buildx imagetools inspect python:3.13-slim-trixie --format '{{.Manifest.Digest}}'
ARG PYTHON_TAG=3.13-slim-trixie
ARG PYTHON_DIGEST=sha256:bb2988715db2cf7ace7b53f38f3cffbef7c7046a656bee66245eb0ed386e2e81

FROM python:${PYTHON_TAG}@${PYTHON_DIGEST} AS build
WORKDIR /src
COPY requirements requirements
# Locked packages, from wheels only, so no compiler is needed; into an environment without pip, so the image has no
# installer. Byte code is compiled here because the service cannot write it. Code changes do not rerun this step.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --only-binary :all: --root-user-action ignore -r requirements/build.txt \
    && python -m venv --without-pip /opt/ragherd \
    && pip --python /opt/ragherd/bin/python install \
       --no-deps --require-hashes --only-binary :all: --compile -r requirements/image.txt
COPY pyproject.toml README.md LICENSE THIRD-PARTY-NOTICES.md ./
COPY api api
COPY ragherd ragherd
COPY training training
COPY worker_config worker_config
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /src/dist . \
    && pip --python /opt/ragherd/bin/python install --no-cache-dir --no-deps --no-index --compile /src/dist/*.whl
# Remove what the service never uses: the model downloader that tokenizers depends on (the weights are installed already),
# the converters in onnxruntime, stubs for type checkers, and the tests of the libraries.
WORKDIR /opt/ragherd/lib/python3.13/site-packages
RUN pip --python /opt/ragherd/bin/python uninstall --yes huggingface_hub hf-xet fsspec filelock tqdm httpx2 httpcore2 truststore \
    && rm -r onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets \
    && find . -name '*.pyi' -delete \
    && find . -mindepth 2 -type d \( -name tests -o -name test \) -prune -exec rm -r {} +

FROM python:${PYTHON_TAG}@${PYTHON_DIGEST}
ARG PYTHON_TAG
ARG PYTHON_DIGEST
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="Ragherd" \
      org.opencontainers.image.description="A RAG query service in front of Ollama whose workers and replicas share one memory in Redis" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="docker.io/library/python:${PYTHON_TAG}" \
      org.opencontainers.image.base.digest="${PYTHON_DIGEST}"
# The installers of the base image are not needed to run.
RUN python -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && find /usr/local/lib -type d -name ensurepip -prune -exec rm -r {} +
COPY --from=build /opt/ragherd /opt/ragherd
WORKDIR /opt/ragherd
# A container listens on all its addresses; publishing the port decides who can reach it. ALLOW_ANONYMOUS lets it start
# without API_KEYS, with a warning in the log. -e ALLOW_ANONYMOUS=false requires keys.
ENV PATH=/opt/ragherd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    ALLOW_ANONYMOUS=true \
    EMBEDDER=onnx \
    PROMETHEUS_MULTIPROC_DIR=/tmp/ragherd-metrics
# A numeric user lets Kubernetes verify that it is not root. The service writes only below /tmp: run it with
# --read-only --tmpfs /tmp. The Prometheus directory has a fixed name there, so that a restart empties it.
USER 10001:10001
EXPOSE 8001 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; connection = HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8001), timeout=2); connection.request('GET', '/health/ready'); sys.exit(connection.getresponse().status != 200)"]
# `ragherd serve` becomes the gunicorn master, which is process 1. It drains on SIGTERM: allow it DRAIN_DELAY +
# GRACEFUL_TIMEOUT + 5 s (docker stop --time 45). It reaps every child, also one that a killed worker leaves behind.
# Other commands: docker run --rm ragherd serve --check
ENTRYPOINT ["ragherd"]
CMD ["serve"]
