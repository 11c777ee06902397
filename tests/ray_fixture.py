"""One private two-CPU Ray for all tests of a session: `from tests.ray_fixture import ray_address`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayunlearn.cluster.session import ray_session

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
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
