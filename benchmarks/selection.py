"""What selecting takes: `python -m benchmarks.selection [DOCUMENTS] [WIDTH] [RATIO]`.

CPU seconds of one core and peak memory of each selector that chooses one document after another,
each in a process of its own, beside the estimate of `selectors/cost.py`. 200,000 documents of width
128 at 5% by default; what the estimate refuses is not run.

Vectors are clustered with a common direction, as hidden states are; keywords are ten of a
vocabulary of 1,000 for each document.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from rayunlearn.errors import UserError
from rayunlearn.selectors import greedy
from rayunlearn.selectors.cost import COSTS, n_places

N_CLUSTERS, VOCABULARY, KEYWORDS = 200, 1_000, 10


def main() -> None:
    """One line per selector."""
    n, width, ratio = (*sys.argv[1:], *("200000", "128", "0.05")[len(sys.argv) - 1 :])
    print(f"{n} documents of width {width}, ratio {ratio}")
    for name in (*COSTS, "keyword_coverage"):
        command = [sys.executable, "-m", "benchmarks.selection", n, width, ratio, name]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout.strip() or done.stderr.strip().splitlines()[-1], flush=True)


def measure(name: str, n: int, width: int, ratio: float) -> str:
    """The line of one selector, in this process."""
    torch.set_num_threads(1)
    n_ranked = n_places(n, ratio)
    estimate = f"estimate {COSTS[name](n, width, n_ranked).seconds:,.0f} s" if name in COSTS else ""
    documents = keywords(n) if name == "keyword_coverage" else vectors(n, width)
    before = time.process_time()
    try:
        getattr(greedy, name)(documents, n_ranked)
    except UserError as error:
        return f"{name}: refused, {error}"
    seconds = time.process_time() - before
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    mebibytes = int(status.split("VmHWM:")[1].split()[0]) // 1024
    return f"{name}: {n_ranked:,} ranked, {seconds:.1f} s, {mebibytes:,} MiB {estimate}".rstrip()


def vectors(n: int, width: int) -> torch.Tensor:
    """(n, width) float32."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(N_CLUSTERS, width, generator=generator)
    members = torch.randint(0, N_CLUSTERS, (n,), generator=generator)
    return centres[members] + 0.5 * torch.randn(n, width, generator=generator) + 2


def keywords(n: int) -> list[dict[str, float]]:
    """Ten weighted keywords of each document."""
    generator = random.Random(0)
    words = [f"word{i}" for i in range(VOCABULARY)]
    return [dict.fromkeys(generator.sample(words, KEYWORDS), 1.0) for _ in range(n)]


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(measure(sys.argv[4], int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
    else:
        main()
