# Two images for a deployment: `web` and `worker` (which also runs beat and Flower), each with its own code and
# packages only. `demo-web` and `demo-worker` add the demo's configuration; `demo` holds the simulators.
# No compiler, no pip, no root in any of them.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
ENV PIP_PYTHON=/opt/venv/bin/python
WORKDIR /build

FROM packages AS web-packages
COPY requirements/web.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --compile --only-binary :all: --require-hashes -r web.txt

# What shows the version: the program is a folder in the image, not an installed package.
COPY pyproject.toml .
RUN /opt/venv/bin/python -c "import pathlib, sysconfig, tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    folder = pathlib.Path(sysconfig.get_path('purelib'), 'opt_out_bridge.dist-info'); \
    folder.mkdir(); \
    (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'.format(**project))"

FROM packages AS worker-packages
COPY requirements/worker.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --compile --only-binary :all: --require-hashes -r worker.txt

# What `optout --version` reads: the program is a folder in the image, not an installed package.
COPY pyproject.toml .
RUN /opt/venv/bin/python -c "import pathlib, sysconfig, tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    folder = pathlib.Path(sysconfig.get_path('purelib'), 'opt_out_bridge.dist-info'); \
    folder.mkdir(); \
    (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'.format(**project))"

FROM worker-packages AS demo-packages
COPY requirements/demo.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --compile --only-binary :all: --require-hashes -r demo.txt

FROM ${PYTHON_IMAGE} AS runtime
RUN pip uninstall --quiet --yes --root-user-action ignore pip && \
    groupadd --system --gid 10001 optout && \
    useradd --system --uid 10001 --gid optout --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin optout
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OPTOUT_CONFIG=/etc/optout/config.toml \
    OPTOUT_CA_FILE=/etc/optout-ca/ca.pem
WORKDIR /app
COPY shared shared
LABEL org.opencontainers.image.title="Opt-Out Bridge" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.description="Records Twilio opt-outs in REDCap" \
      org.opencontainers.image.licenses="MIT"

FROM runtime AS web
COPY --from=web-packages /opt/venv /opt/venv
COPY web web
COPY deploy/granian-log.json deploy/
# Files of a clone that was made with umask 077 are readable by nobody else.
RUN chmod -R a+rX . && python -m compileall -q .
ENV GRANIAN_LOG_CONFIG=/app/deploy/granian-log.json
# As in Procfile. Backpressure counts connections, idle ones included; what 4,096 can hold (32 KiB of headers, 64 KiB of a
# body) stays below the memory limit, measured at 640 MB. As many more wait in the backlog.
USER 10001:10001
EXPOSE 8000
CMD ["granian", "--interface", "asginl", "--http", "1", "--no-ws", "--runtime-mode", "st", \
     "--http1-header-read-timeout", "10000", "--http1-buffer-size", "32768", \
     "--backlog", "4096", "--backpressure", "4096", \
     "--host", "0.0.0.0", "--port", "8000", "web.asgi:app"]

FROM runtime AS worker
COPY --from=worker-packages /opt/venv /opt/venv
COPY --chmod=755 deploy/optout /usr/local/bin/optout
COPY deploy/flowerconfig.py deploy/
COPY worker worker
RUN chmod -R a+rX . && python -m compileall -q .
ENV OPTOUT_HEARTBEAT_FILE=/tmp/heartbeat
USER 10001:10001
CMD ["python", "-m", "worker", "worker"]

# Never part of a deployment: the demo's configuration and its published secrets, in images of their own, so that the
# demo mounts nothing of the clone and starts whatever the modes of its files are.
FROM web AS demo-web
ENV OPTOUT_DEMO=1
COPY --chmod=755 deploy/demo/config.toml /etc/optout/config.toml
COPY --chmod=755 deploy/demo/secrets /run/secrets

FROM worker AS demo-worker
ENV OPTOUT_DEMO=1
COPY --chmod=755 deploy/demo/config.toml /etc/optout/config.toml
COPY --chmod=755 deploy/demo/secrets /run/secrets

# Fictional studies, a fake Twilio and a mailbox, and the story that they play.
FROM runtime AS demo
ENV OPTOUT_DEMO=1
COPY --from=demo-packages /opt/venv /opt/venv
COPY --chmod=755 deploy/optout /usr/local/bin/optout
COPY worker worker
COPY tests tests
RUN chmod -R a+rX . && python -m compileall -q .
COPY --chmod=755 deploy/demo/config.toml /etc/optout/config.toml
COPY --chmod=755 deploy/demo/secrets /run/secrets
USER 10001:10001
CMD ["python", "-m", "tests.compose.story"]
