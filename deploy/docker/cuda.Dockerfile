# jaxl on NVIDIA's GPUs; CUDA comes with jax, the driver (580 or newer) with the machine. From the root of the repository:
# docker build --file deploy/docker/cuda.Dockerfile --tag jaxl:cuda .
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
# of all images of one Ray cluster, and rayVersion in deploy/kubernetes/ray
ARG RAY=2.60.0
WORKDIR /build
RUN python -m venv /opt/jaxl
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip /opt/jaxl/bin/pip install ".[serve,ray,cuda13]" "ray==${RAY}"

FROM python:${PYTHON}
# KubeRay's probes call wget; its version is Debian's, which keeps only the last one
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
# a user with a group of its own, and the folder that volumes are mounted at
RUN useradd --uid 10001 --user-group --create-home jaxl \
    && install --directory --owner jaxl --group jaxl /cache
COPY --from=build /opt/jaxl /opt/jaxl
ENV PATH=/opt/jaxl/bin:$PATH \
    JAXL_CACHE_DIR=/cache/programs \
    HF_HOME=/cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/jaxl
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["wget", "--quiet", "--output-document=/dev/null", "http://127.0.0.1:8000/health/live"]
ENTRYPOINT ["jaxl"]
CMD ["serve", "--host", "0.0.0.0"]
