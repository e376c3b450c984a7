# Images of scalai-nb, one target a role:
#   docker build --target serve -t scalai-nb-serve .      answers over HTTP; no frames, networks, registry
#   docker build --target ingest -t scalai-nb-ingest .    follows a source into its table
#   docker build --target dash -t scalai-nb-dash .        dashboards
#   docker build --target tracking -t scalai-nb-tracking .  MLflow's server
#   docker build --target worker -t scalai-nb-worker .    scheduler, jobs and trainings; has torch
# The workspace is no part of them: mount it at /work, or make an image of your own: FROM scalai-nb-worker, COPY . /work
# Python is that of BASE; give a CPU build of torch by TORCH_INDEX=https://download.pytorch.org/whl/cpu.
ARG BASE=python:3.11-slim-bookworm
ARG UV=ghcr.io/astral-sh/uv:0.9.7

FROM ${UV} AS uv

# The package as a wheel. Only this stage sees the sources; a change of a notebook rebuilds no dependency.
FROM ${BASE} AS wheel
COPY --from=uv /uv /usr/local/bin/uv
ARG SOURCE_DATE_EPOCH=315532800
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY scalai_nb scalai_nb
COPY workflows workflows
COPY apps apps
COPY examples examples
COPY share share
COPY nbs/tutorials nbs/tutorials
RUN uv build --wheel --quiet --out-dir /wheel

# What all builds share: an empty environment, and where its packages come from.
FROM ${BASE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ARG SOURCE_DATE_EPOCH=315532800
ARG TORCH_INDEX=
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_EXTRA_INDEX_URL=${TORCH_INDEX} \
    PYTHONDONTWRITEBYTECODE=1 VIRTUAL_ENV=/opt/scalai SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
COPY docker/install tests/constraints.txt /build/
RUN uv venv --quiet --python python3 /opt/scalai
COPY --from=wheel /wheel /wheel

FROM build AS build-serve
RUN /build/install serve

FROM build AS build-ingest
RUN /build/install data,sources

FROM build AS build-dash
RUN /build/install dash,sources

FROM build AS build-tracking
RUN /build/install tracking

FROM build AS build-worker
RUN /build/install all

# What all images share: a user without rights, a root that can be read-only, no compiler, no pip, no uv.
FROM ${BASE} AS base
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="scalai-nb" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=${COMMIT}
ENV PATH=/opt/scalai/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /work
USER 10001:10001
STOPSIGNAL SIGTERM

FROM base AS serve
COPY --from=build-serve /opt /opt
ENV SCALAI_SERVE__OBSERVE=false
EXPOSE 8000
CMD ["scalai", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS ingest
COPY --from=build-ingest /opt /opt
EXPOSE 9110
CMD ["scalai", "ingest", "--help"]

FROM base AS dash
COPY --from=build-dash /opt /opt
EXPOSE 8866
CMD ["scalai", "dash", "--no-browser", "--host", "0.0.0.0", "--port", "8866"]

FROM base AS tracking
COPY --from=build-tracking /opt /opt
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]

FROM base AS worker
COPY --from=build-worker /opt /opt
EXPOSE 9100
CMD ["scalai", "scheduler", "--metrics-host", "0.0.0.0", "--metrics-port", "9100"]
