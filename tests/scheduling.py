"""Which tests go to one process together, and which groups begin first, where pytest-xdist runs
several (`pytest -n 3`).
"""

from xdist.scheduler import LoadScopeScheduling

# its tests share one Ray, which runs in the process that has them
RAY = "tests/cluster/"
# The longest groups as `pytest --durations` has them, so that no process is left with one of them
# at the end; the order of the others matters little.
LONGEST = (
    RAY,
    "tests/test_hash_seeds.py",
    "tests/train/test_fsdp.py",
    "tests/models/test_families.py",
    "tests/cli/test_startup.py",
    "tests/trial/test_coreset.py",
    "tests/cli/test_plan.py",
    "tests/train/test_teach.py",
    "tests/trial/test_caches.py",
)


def group_of(test: str) -> str:
    """The tests that run in one process, one after the other: a file, which may have fixtures of
    its own, or the folder of the tests that need Ray.
    """
    return RAY if test.startswith(RAY) else test.partition("::")[0]


def place_of(test: str) -> int:
    """Sorting key of a test: the longest groups first."""
    group = group_of(test)
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)


class GroupScheduling(LoadScopeScheduling):
    """Deals out the groups of `group_of` in the order in which the tests were collected; xdist
    itself would begin with the files of the most tests, which are not the longest.
    """

    def schedule(self) -> None:
        """Deal out what is ready, once every process has collected the tests."""
        self.config.option.loadscopereorder = False
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
