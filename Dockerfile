# fasttune on an NVIDIA GPU. Read docs/docker.md first: nobody has built or run this yet.
#
#   docker build -t fasttune .
#   docker run --rm --gpus all -v "$PWD:/project" fasttune doctor

# Base is enough: torch's wheels bring CUDA's libraries, triton's its assembler. The driver is the host's.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# Triton compiles a small launcher for each kernel: that takes a C compiler and Python's headers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/fasttune
ENV PATH=/opt/fasttune/bin:$PATH

WORKDIR /src
# The versions that the tests ran with; there on a CPU, here in their builds for CUDA.
COPY requirements-cuda.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements-cuda.txt
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY configs configs
COPY plugins plugins
COPY src src
RUN pip install --no-cache-dir --no-deps .

# Runs, and what is downloaded and remembered, are in the folder that is mounted.
ENV HF_HOME=/project/.cache/huggingface \
    XDG_CACHE_HOME=/project/.cache \
    XDG_CONFIG_HOME=/project/.config \
    XDG_STATE_HOME=/project/.state
WORKDIR /project
ENTRYPOINT ["fasttune"]
CMD ["--help"]
