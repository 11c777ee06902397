"""One Ray of two CPUs for this folder's tests. It ends with the last of them.

A test has a cluster of its own only where a shared one would not do, and says why: it counts what
a private cluster listens on, needs a GPU that Ray believes in, loses machines or the head
(tests/cluster_of_nodes.py), or asks the job server (test_jobs.py). The drivers that a test kills
or interrupts are processes of their own that join this cluster.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayunlearn.cluster.session import ray_session

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def ray_address() -> Iterator[str]:
    """Address of the cluster; sweeps in this process join it by themselves."""
    before = dict(os.environ)
    # workers import the fakes by name
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    try:
        with ray_session(address="local", workers=2):
            import ray

            yield str(ray.get_runtime_context().gcs_address)
    finally:
        os.environ.clear()
        os.environ.update(before)
