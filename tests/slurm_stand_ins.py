"""Stand-ins for `sbatch`, `srun`, `scontrol` and `ray symmetric-run` on one machine: scripts of
these names on PATH (`stand_ins`) that run this file.

`sbatch` runs the script at once and returns at its end: it hands it Slurm's variables, appends its
output to the file of `--output`, and starts it again where `scontrol requeue` was called. The time
limit's signal comes when there are as many files as SLURM_STAND_IN_LIMIT says, `PATTERN N N`: a
number for each allocation, none where it ends by itself. `srun` runs its tasks side by side, ends
the others `--wait` seconds after the first, and passes SIGTERM on to them; SLURM_STAND_IN_NODE is
what a task's command begins with, `%t` being the task's number. So does Slurm; where tasks run, and
what of the machine they are given, is not what is stood in for.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol")
JOB = "4711"


def stand_ins(folder: Path, *names: str) -> str:
    """A PATH on which these names are the stand-ins, before everything else."""
    folder.mkdir()
    for name in names or NAMES:
        # -P: the modules of this folder have names of the standard library's
        words = [sys.executable, "-P", "-S", str(Path(__file__).resolve()), name]
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


def options_of(script: str) -> dict[str, str]:
    """The directives of a batch script."""
    lines = [
        line.split(maxsplit=1)[1] for line in script.splitlines() if line.startswith("#SBATCH")
    ]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def sbatch(words: list[str]) -> int:
    script, *arguments = [word for word in words if word != "--parsable"]
    options = options_of(Path(script).read_text())
    n_nodes = options["--nodes"]
    name = options["--output"].replace("%x", options["--job-name"]).replace("%j", JOB)
    pattern, *limits = os.environ.get("SLURM_STAND_IN_LIMIT", "none").split()
    variables = {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NODELIST": ",".join(["localhost"] * int(n_nodes)),
        "SLURM_JOB_NUM_NODES": n_nodes,
        "SLURM_JOB_CPUS_PER_NODE": options.get("--cpus-per-task", "2") + f"(x{n_nodes})",
    }
    restarts, requeue = 0, Path(f"requeue-{JOB}")
    while restarts == 0 or requeue.exists():
        requeue.unlink(missing_ok=True)
        variables["SLURM_RESTART_COUNT"] = str(restarts)
        with Path(name).open("a") as output:
            command = ["bash", script, *arguments]
            job = subprocess.Popen(
                command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT
            )
        if limits:
            wait_for_files(job, pattern, int(limits.pop(0)))
            job.send_signal(signal.SIGUSR1)
        job.wait()
        restarts += 1
    Path(f"status-{JOB}").write_text(f"{job.returncode} {restarts - 1}")
    print(JOB)
    return 0


def wait_for_files(job: subprocess.Popen[bytes], pattern: str, n_files: int) -> None:
    while job.poll() is None and len(glob(pattern)) < n_files:
        time.sleep(0.05)


def srun(words: list[str]) -> int:
    options = dict(
        word.split("=", 1) for word in words[: words.index("bash")] if word.startswith("--")
    )
    command = words[words.index("bash") :]
    n_tasks = int(options["--ntasks"])
    given = {"SLURM_NTASKS": str(n_tasks), "SLURM_CPUS_PER_TASK": options["--cpus-per-task"]}
    on_node = os.environ.get("SLURM_STAND_IN_NODE", "")
    tasks = [
        subprocess.Popen(
            [*on_node.replace("%t", str(number)).split(), *command],
            env=os.environ | given | {"SLURM_PROCID": str(number)},
        )
        for number in range(n_tasks)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    first_end = 0.0
    while any(task.poll() is None for task in tasks):
        ended = [task.returncode for task in tasks if task.returncode is not None]
        first_end = first_end or (time.monotonic() if ended else 0.0)
        late = bool(first_end) and time.monotonic() > first_end + float(options["--wait"])
        if late or any(ended):
            for task in tasks:
                task.terminate()
        time.sleep(0.05)
    return max(abs(task.returncode) for task in tasks)


def scontrol(words: list[str]) -> int:
    if words[0] == "show":
        print("\n".join(words[2].split(",")))
    else:
        Path(f"requeue-{words[1]}").touch()
    return 0


def ray(words: list[str]) -> int:
    """`symmetric-run`: the command on the first node; the others are there until it has ended."""
    assert words[0] == "symmetric-run" and os.environ["RAY_AUTH_TOKEN"], words
    if os.environ["SLURM_PROCID"] == "0":
        return subprocess.run(words[words.index("--") + 1 :]).returncode
    time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
