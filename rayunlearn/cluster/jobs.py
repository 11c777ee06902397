"""`rayunlearn submit` and `rayunlearn jobs`: pack this project, hand it to a cluster's job server,
follow the job, find its run.

What travels is a zip that is made and measured here, before anything is uploaded: Ray's server
refuses a larger one only after the transfer, with a number that is not the limit.
"""

import asyncio
import secrets
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rayunlearn.errors import UserError, require
from rayunlearn.storage.retry import retry

# the job server answers 413 above it (measured with Ray 2.60)
LIMIT_BYTES = 100 * 2**20

EXCLUDED_FOLDERS = (
    ".git",
    ".venv",
    "runs",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "*.safetensors",
    "*.pt",
    "*.bin",
)

# Ray would apply them a second time, to files that were asked for
IGNORE_FILES = (".gitignore", ".rayignore")

INSTALL = (
    "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt",
    "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}",
)

# what a stopped job has to close its run before it is killed; Ray's own 3 seconds are too few
STOP_SECONDS = "120"

TOKEN_HINT = (
    "; the server wants a token: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... as on the cluster"
)

# what a head says that has no agent for jobs (Ray 2.60): one that has just begun, or one whose
# agent found its port taken
NO_AGENT = "No available agent"
AGENT_SECONDS = 45.0
AGENT_HINT = (
    " Another Ray on the head's machine may hold the agent's port 52365: start the head with"
    " --dashboard-agent-listen-port and a free port (docs/cluster.md)"
)

ENDED_STATUSES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What `rayunlearn submit` was asked for.

    words: the command that the job runs, `rayunlearn run ...`; output: the folder of runs that
    every machine sees;
    folder: what is packed; include: paths in it that go along although an ignore rule leaves them
    out; variables: names of environment variables that the job gets from here; install: whether the
    job first installs the packed project.
    """

    words: tuple[str, ...]
    experiment: str
    version: str
    output: str
    folder: Path
    include: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    install: bool = False


def packed_files(folder: Path, include: Sequence[str]) -> list[Path]:
    """The files that travel, relative to `folder`: what git tracks or would track, else everything
    but LEFT_OUT; and `include`.

    Raises UserError for an include that is not there or lies outside.
    """
    listed_files = _files_of_git(folder)
    chosen = set(listed_files if listed_files is not None else _files_below(folder))
    packed = {
        path
        for path in chosen
        if not any(fnmatch(part, rule) for part in path.parts for rule in EXCLUDED_FOLDERS)
    }
    return sorted(
        path
        for path in packed | set(_included(folder, include))
        if path.name not in IGNORE_FILES and (folder / path).is_file()
    )


def pack(folder: Path, files: Iterable[Path], archive: Path) -> int:
    """Write the zip and return its size in bytes. Raises UserError, naming the largest files, where
    it is over LIMIT_BYTES.
    """
    paths = list(files)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in paths:
            packed.write(folder / path, path.as_posix())
        sizes = sorted(
            ((entry.compress_size, entry.filename) for entry in packed.infolist()), reverse=True
        )
    size = archive.stat().st_size
    largest = ", ".join(f"{name} {bytes_ / 2**20:.1f} MiB" for bytes_, name in sizes[:5])
    rule = (
        f"what is packed must be at most {LIMIT_BYTES / 2**20:.0f} MiB, compressed (put data and"
        f" models on the shared storage); largest: {largest}"
    )
    require(size <= LIMIT_BYTES, rule, f"{size / 2**20:.1f} MiB")
    return size


def runtime_environment(request: Submission, archive: Path) -> dict[str, Any]:
    """What Ray sets up before the job: the packed project, environment variables and, if asked, an
    installation of it.
    """
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS} | dict(request.variables)
    environment: dict[str, Any] = {"working_dir": str(archive), "env_vars": variables}
    return environment | ({"pip": list(INSTALL)} if request.install else {})


def submit_job(request: Submission, address: str, say: Callable[[str], None]) -> str:
    """Hand the job over and return its submission id. Raises UserError where no job server answers
    or it refuses.
    """
    everywhere = "://" in request.output or Path(request.output).is_absolute()
    require(
        everywhere,
        "--output must be an absolute path or a URL that every machine of the cluster sees",
        request.output,
    )
    client = client_of(address)
    with tempfile.TemporaryDirectory(prefix="rayunlearn-") as temporary:
        archive = Path(temporary) / "project.zip"
        files = packed_files(request.folder, request.include)
        size = pack(request.folder, files, archive)
        say(f"packed {len(files)} files, {size / 2**20:.1f} MiB")
        job = f"{request.experiment}-{request.version}-{secrets.token_hex(4)}".replace(".", "-")
        metadata = {
            "experiment": request.experiment,
            "version": request.version,
            "run": run_of_job(request),
        }
        submission: dict[str, Any] = {
            "entrypoint": shlex.join(request.words),
            "submission_id": job,
            "metadata": metadata,
        }
        return str(
            _answered(
                address,
                lambda: client.submit_job(
                    runtime_env=runtime_environment(request, archive), **submission
                ),
            )
        )


def run_of_job(request: Submission) -> str:
    """Where the job's run will be."""
    return f"{request.output.rstrip('/')}/{request.experiment}/{request.version}"


def follow_job(job: str, address: str, say: Callable[[str], None]) -> int:
    """Print what the job prints until it ends; returns its exit status,
    130 where it was stopped.
    """
    client = client_of(address)
    asyncio.run(_print_logs(client, job, say))
    details = _answered(address, lambda: client.get_job_info(job))
    status = _status(details)
    if status not in ENDED_STATUSES:
        raise UserError(
            f"the job {job} is {status} and its output has ended; ask again with: rayunlearn jobs"
            f" --address {address} {job}"
        )
    exit_code = details.driver_exit_code
    return (
        int(exit_code) if exit_code is not None and status == "FAILED" else ENDED_STATUSES[status]
    )


def stop_job(job: str, address: str) -> bool:
    """Ask the job to end as Ctrl-C would: what has finished is kept. False where it had ended
    already.
    """
    client = client_of(address)
    return bool(_answered(address, lambda: client.stop_job(job)))


def list_jobs(address: str) -> list[dict[str, str]]:
    """The cluster's jobs, latest first: job, status, and where its run is; of a job that `submit`
    did not start, its command instead.
    """
    client = client_of(address)
    matching_jobs = [d for d in _answered(address, client.list_jobs) if d.submission_id]
    matching_jobs.sort(key=lambda d: d.start_time or 0, reverse=True)
    return [
        {
            "job": d.submission_id,
            "status": _status(d),
            "run": (d.metadata or {}).get("run") or d.entrypoint,
        }
        for d in matching_jobs
    ]


def client_of(address: str) -> Any:
    """A client of the job server. Raises UserError where none answers, with what a missing token
    looks like.
    """
    require(
        address.startswith(("http://", "https://")),
        "--address must be the job server's http://HOST:PORT (the dashboard's port)",
        address,
    )
    from ray.job_submission import JobSubmissionClient

    return _answered(address, lambda: JobSubmissionClient(address))


def _answered(address: str, ask: Callable[[], Any]) -> Any:
    """What the server answers. A head that has just begun has no agent for jobs yet and says so: it
    is asked again for a while.
    """
    from ray.exceptions import RayError

    waits: list[str] = []

    def lacks_agent(error: Exception) -> bool:
        if NO_AGENT not in str(error):
            return False
        if not waits:
            waits.append(str(error))
            print(f"the job server at {address} has no agent yet; waiting", file=sys.stderr)
        return True

    try:
        return retry(ask, is_transient=lacks_agent, patience=AGENT_SECONDS)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        text = str(error)
        hint = TOKEN_HINT if "401" in text or "oken" in text else ""
        hint = AGENT_HINT if NO_AGENT in text else hint
        raise UserError(
            f"the job server at {address} did not do it: {text.strip()}{hint}"
        ) from error


def _status(details: Any) -> str:
    return str(getattr(details.status, "value", details.status))


async def _print_logs(client: Any, job: str, say: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        say(lines)


def _files_of_git(folder: Path) -> list[Path] | None:
    """Tracked and untracked files that no ignore rule leaves out; None where the folder is no git
    checkout.
    """
    command = [
        "git",
        "-C",
        str(folder),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [Path(name) for name in listed.split("\0") if name]


def _files_below(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]


def _included(folder: Path, include: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for name in include:
        path = (folder / name).resolve()
        require(
            path.exists() and path.is_relative_to(folder.resolve()),
            "--include must name a path inside the folder that is packed",
            name,
        )
        inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        files += [p.relative_to(folder.resolve()) for p in inside]
    return files
