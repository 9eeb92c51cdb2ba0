# kvray's image, for a plain `docker run`, for cluster.yaml and for kuberay/rayjob.yaml alike.
#
#   docker build --target cpu --tag kvray:cpu .
#   docker build --target gpu --tag kvray:gpu .      about 12 GB; its host needs NVIDIA's driver 580 or newer
#   docker run --rm --shm-size 8g kvray:cpu kvray run sweeps/quickstart.yaml --store /scratch/store
#   docker run --rm --shm-size 8g --gpus all --env HF_TOKEN --volume /mnt/fast:/scratch \
#       kvray:gpu kvray run sweeps/paper/mdqa-mistral.yaml --store s3://YOUR-BUCKET/kvray
#
# /scratch is for a fast disk: downloaded models and copies of finetunes. A volume there belongs to user 1000.
# Both sets are pinned as a whole, so nothing is resolved here. There is no ENTRYPOINT: Ray's cluster launcher and KubeRay
# run shells of their own.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS base
SHELL ["/bin/bash", "-euxo", "pipefail", "-c"]
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# g++: vLLM and Triton compile parts of themselves as they start. libnuma1: vLLM on a CPU. openssh-client, rsync: the
# autoscaler of cluster.yaml's head starts other nodes by them. wget: KubeRay's probes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*
# The numbers are those of Ray's own images, and of `ubuntu`, the user of the cloud's machines.
RUN useradd --create-home --uid 1000 --gid 100 --shell /bin/bash ray \
    && install --directory --owner ray --group 100 /scratch /home/ray/kvray
# Temporary copies go to /scratch, but Ray's own folder stays where KubeRay looks for its logs.
ENV HF_HOME=/scratch/huggingface XDG_CACHE_HOME=/scratch/cache TMPDIR=/scratch RAY_TMPDIR=/tmp
WORKDIR /build

FROM base AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY kvray kvray
RUN pip wheel --no-deps --wheel-dir /dist .

FROM base AS cpu
COPY requirements/cpu.txt requirements/benchmarks.txt ./
# The only package that is taken from another index: torch's CPU build is on no other.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --extra-index-url "${TORCH_INDEX}" "$(grep '^torch==' cpu.txt)" \
    && pip install --no-deps -r cpu.txt -r benchmarks.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-deps /dist/*.whl
COPY --chown=1000:100 sweeps /home/ray/kvray/sweeps
WORKDIR /home/ray/kvray
USER 1000:100
CMD ["kvray", "--help"]

FROM base AS gpu
# What NVIDIA's container toolkit gives the container: the driver, and nvidia-smi for `kvray doctor`.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY requirements/gpu.txt ./
RUN pip install --no-deps -r gpu.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-deps /dist/*.whl
COPY --chown=1000:100 sweeps /home/ray/kvray/sweeps
WORKDIR /home/ray/kvray
USER 1000:100
CMD ["kvray", "--help"]
