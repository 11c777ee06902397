# One image for the head, the workers and a laptop with Docker:
#   docker build -t rayunlearn:0.2.0 .
#   docker run --rm --shm-size=2g -v "$PWD/runs:/runs" rayunlearn:0.2.0 rayunlearn run experiments/hello.py --output /runs
#   docker run --rm --gpus all ...                       the same on a GPU; the torch wheel brings its own CUDA libraries
FROM python:3.11-slim-bookworm

# wget: the health checks that KubeRay puts into every pod call it. git: the commit of a mounted checkout goes into the rows.
RUN apt-get update && apt-get install --yes --no-install-recommends git wget && rm -rf /var/lib/apt/lists/*

# A user without rights: Ray runs what it is sent.
RUN useradd --create-home --uid 1000 ray
WORKDIR /home/ray/rayunlearn

# Dependencies first, in a layer of their own: a change of our code does not install torch again.
COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir rayunlearn && touch rayunlearn/__init__.py \
    && pip install --no-cache-dir -c constraints.txt . && pip uninstall --yes rayunlearn && rm -rf rayunlearn build *.egg-info
COPY --chown=ray rayunlearn rayunlearn
COPY --chown=ray experiments experiments
RUN pip install --no-cache-dir --no-deps -c constraints.txt .

USER ray
ENV RAY_USAGE_STATS_ENABLED=0 NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["rayunlearn", "list", "experiments"]
