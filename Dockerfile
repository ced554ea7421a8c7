# One image for the three processes: `docker run … tandem coordinator`, `… profiles_server migrate`, `… identity_stub`.
# It holds no PostgreSQL, so each needs its …_DATABASE_URL.

FROM python:3.12-slim AS build
WORKDIR /source
# What builds the wheel, at its pinned version, apart from what will run.
COPY constraints.txt ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --constraint constraints.txt hatchling
COPY pyproject.toml LICENSE README.md ./
COPY protos ./protos
COPY tandem ./tandem
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/tandem \
    && wheel=$(ls /wheels/tandem-*.whl) \
    && /opt/tandem/bin/pip install --no-cache-dir --constraint constraints.txt "$wheel[processes,console,tracing,kafka]"

FROM python:3.12-slim
RUN groupadd --system --gid 10001 tandem \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir / --shell /usr/sbin/nologin tandem
COPY --from=build /opt/tandem /opt/tandem
WORKDIR /app
COPY coordinator ./coordinator
COPY profiles_server ./profiles_server
COPY identity_stub ./identity_stub
ENV PATH=/opt/tandem/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# gRPC and metrics of profiles_server, coordinator and identity_stub.
EXPOSE 50051 9091 50052 9092 50053 9093
ENTRYPOINT ["python", "-m"]
