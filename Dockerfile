# A node of pushsse; also its command line: docker run --rm pushsse token --help
FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /opt/pushsse
# Installs exactly what the lock lists. The layer is rebuilt only when the lock changes.
COPY requirements.lock ./
RUN /opt/pushsse/bin/pip install --no-cache-dir --disable-pip-version-check \
      --no-deps --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY pushsse ./pushsse
RUN /opt/pushsse/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
    && /opt/pushsse/bin/pip check \
    && /opt/pushsse/bin/pip uninstall --yes --quiet pip hatchling editables trove-classifiers pluggy pathspec tomlkit

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin pushsse \
    && mkdir /etc/pushsse
COPY --from=build /opt/pushsse /opt/pushsse
ENV PATH=/opt/pushsse/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A pushsse.toml may be mounted here.
WORKDIR /etc/pushsse
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
ENTRYPOINT ["pushsse"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
