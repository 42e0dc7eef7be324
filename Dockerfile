# The image of every pod: `docker build -t harbor-cluster:0.1.0 .`
# About 480 MB: the slim base's 130 MB, 350 MB of Python packages (most of it Ray).
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python -m venv /opt/harbor
COPY constraints.txt pyproject.toml README.md ./
COPY cluster ./cluster
RUN /opt/harbor/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[fast,otel]'

FROM ${BASE}
COPY --from=build /opt/harbor /opt/harbor
ENV PATH=/opt/harbor/bin:$PATH \
    HOME=/tmp \
    RAY_TMPDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN mkdir -p /var/lib/harbor && chown 10001:10001 /var/lib/harbor
USER 10001:10001
WORKDIR /tmp
# All that is written; the rest may be read-only.
VOLUME ["/tmp", "/var/lib/harbor"]
EXPOSE 8700 8701
ENTRYPOINT ["harbor"]
