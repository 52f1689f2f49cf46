# petavoxel's image, on the layout of Ray's own images: user ray (1000:100) in /home/ray, `ray` on the PATH, bash and wget
# for the commands and probes that KubeRay adds.
#
#   docker build --target cpu -t petavoxel:VERSION-cpu .
#   docker build --target gpu -t petavoxel:VERSION-gpu .
#
# Both contain kimimaro (GPL-3), so as a whole they are distributed under GPL-3; see README.md, Licences.
ARG BASE=docker.io/library/debian:12.12-slim

FROM ${BASE} AS system
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update -q \
    && apt-get upgrade -qy \
    && apt-get install -qy --no-install-recommends ca-certificates python3 tini wget \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log \
    && useradd --uid 1000 --gid 100 --create-home --shell /bin/bash ray
ENV HOME=/home/ray \
    LANG=C.UTF-8 \
    PATH=/home/ray/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1

# What is installed depends on these two files alone, so changes of the code leave these layers as they are.
FROM system AS packages
RUN apt-get update -q && apt-get install -qy --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /home/ray/venv && pip install -q --no-cache-dir pip==26.3 setuptools==84.2.1
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['tracing'], sep='\n')" > requirements.txt \
    && pip install -q --no-cache-dir --only-binary :all: --no-binary atomicwrites \
      -c constraints.txt -r requirements.txt
# Tests, headers, Ray for Java and C++, OpenVINO's plug-ins for Intel's GPUs and its readers of other formats than ONNX:
# a fifth of the size, and nothing that runs here.
RUN cd /home/ray/venv/lib/python3.11/site-packages \
    && find . -type d \( -name tests -o -name include \) -not -path '*/ray/_private/*' -prune -exec rm -rf {} + \
    && rm -rf ray/jars ray/cpp ray/rllib pyarrow/src openvino/libs/cache.json \
    && find openvino/libs \( -name '*_intel_[gn]pu_plugin.so' -o -name '*_gguf_*' -o -name '*_jax_*' -o -name '*_paddle_*' \
      -o -name '*_pytorch_*' -o -name '*_tensorflow_*' \) -delete \
    && find . -name '*.pyi' -delete

FROM system AS code
COPY pyproject.toml README.md LICENSE /opt/petavoxel/
COPY models /opt/petavoxel/models
COPY infra /opt/petavoxel/infra
COPY services /opt/petavoxel/services
ENV PYTHONPATH=/opt/petavoxel \
    NUMBA_CACHE_DIR=/opt/petavoxel/kernels \
    # One set of compiled kernels for every node of a pool: AVX2, which all x86 nodes of the clouds have.
    NUMBA_CPU_NAME=x86-64-v3 \
    NUMBA_CPU_FEATURES= \
    OMP_NUM_THREADS=1 \
    RAY_USAGE_STATS_ENABLED=0

FROM code AS cpu
COPY --from=packages /home/ray/venv /home/ray/venv
RUN pip install -q --no-build-isolation --no-deps --no-cache-dir -e /opt/petavoxel \
    && python3 -m compileall -q /opt/petavoxel \
    && mkdir /opt/petavoxel/kernels && chown 1000:100 /opt/petavoxel/kernels
USER 1000:100
WORKDIR /home/ray
# Runs everything once: what is compiled stays in the image, and an image that cannot segment is not built.
RUN petavoxel demo /tmp/demo \
    && python3 -c "from services.endpoints.segmentation import compile_kernels; compile_kernels()" \
    && rm -rf /tmp/*
ENTRYPOINT ["tini", "--"]
CMD ["petavoxel", "--help"]
LABEL org.opencontainers.image.title=petavoxel org.opencontainers.image.licenses="Apache-2.0 AND GPL-3.0-or-later"

FROM cpu AS gpu
# TensorRT's wheels fetch their libraries from the vendor; TensorRT-RTX, with the same interface, is on the public index.
ARG TENSORRT=tensorrt-cu12==11.4.0.106
USER root
COPY constraints.txt /build/
RUN pip install -q --no-cache-dir -c /build/constraints.txt onnx "${TENSORRT}" && rm -rf /build
USER 1000:100
# The driver is the node's: the container toolkit mounts it, or GKE puts it into /usr/local/nvidia.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64
