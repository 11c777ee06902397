"""How tests are dealt out to processes."""

from pathlib import Path

from tests.scheduling import LONGEST, RAY, group_of, place_of


def test_a_file_stays_together_and_the_tests_that_share_one_ray_do() -> None:
    assert group_of("tests/test_docs.py::test_a[x::y]") == "tests/test_docs.py"
    assert group_of("tests/cluster/test_sweep.py::test_a") == RAY
    assert group_of("tests/cluster/test_trackers.py::test_b[1]") == RAY


def test_the_longest_groups_begin_first() -> None:
    assert place_of("tests/cluster/test_sweep.py::test_a") == 0
    assert place_of("tests/test_config.py::test_a") > place_of("tests/cluster/test_jobs.py::test_b")
    assert all((Path(__file__).parents[1] / group).exists() for group in LONGEST)
