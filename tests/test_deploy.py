"""The cluster files against the schemas of those who read them, offline.
tests/data/rayjob.v1.schema.json.gz is the RayJob definition (v1) of KubeRay,
github.com/ray-project/kuberay at feeaf72f, Apache-2.0, without its descriptions."""

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[1]


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused: Kubernetes itself would drop them without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {name: closed(part) for name, part in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    return (
        whole
        if "properties" not in schema or open_ended
        else whole | {"additionalProperties": False}
    )


@pytest.fixture(scope="module")
def rayjob_schema() -> Any:
    schema = closed(
        json.loads(gzip.decompress((ROOT / "tests/data/rayjob.v1.schema.json.gz").read_bytes()))
    )
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((ROOT / "deploy/kuberay/rayjob.yaml").read_text()))
    return next(d for d in documents if d["kind"] == "RayJob")


def problems(schema: Any, document: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, e.absolute_path))}: {e.message[:100]}"
        for e in Draft202012Validator(schema).iter_errors(document)
    ]


def test_the_ray_job_is_what_the_operator_reads(rayjob_schema: Any, rayjob: dict[str, Any]) -> None:
    assert problems(rayjob_schema, rayjob) == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("spec", "shutDownAfterJobFinishes"), True),
        (("spec", "ttlSecondsAfterFinished"), "600"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 0),
        (
            (
                "spec",
                "rayClusterSpec",
                "headGroupSpec",
                "template",
                "spec",
                "containers",
                0,
                "images",
            ),
            "x",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_check_would_see_a_mistake(
    rayjob_schema: Any, rayjob: dict[str, Any], where: tuple[Any, ...], value: Any
) -> None:
    broken = copy.deepcopy(rayjob)
    part: Any = broken
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    assert problems(rayjob_schema, broken) != []


def test_the_job_ends_its_cluster_and_asks_for_a_token(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] == 0


def test_versions_are_those_of_the_project(rayjob: dict[str, Any]) -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    spec = rayjob["spec"]["rayClusterSpec"]
    templates = [
        spec["headGroupSpec"]["template"],
        *(group["template"] for group in spec["workerGroupSpecs"]),
    ]
    assert spec["rayVersion"] == pinned["ray"] and version is not None
    assert {c["image"] for t in templates for c in t["spec"]["containers"]} == {
        f"rayunlearn:{version[1]}"
    }


def prepared(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_the_launcher_file_is_what_ray_reads(launcher: dict[str, Any]) -> None:
    prepared(launcher)


@pytest.mark.parametrize(
    "change",
    [{"idle_timeout_minute": 5}, {"head_node_type": "haed"}, {"max_workers": "ten"}],
    ids=str,
)
def test_the_launcher_check_would_see_a_mistake(
    launcher: dict[str, Any], change: dict[str, Any]
) -> None:
    # jsonschema's or Ray's own, as the mistake has it
    with pytest.raises(Exception):  # noqa: B017
        prepared(launcher | change)


def test_the_launched_cluster_costs_its_head_only_when_idle_and_opens_no_port_to_the_world(
    launcher: dict[str, Any],
) -> None:
    types = launcher["available_node_types"]
    assert all(kind["min_workers"] == 0 for kind in types.values())
    assert any("--dashboard-host=127.0.0.1" in line for line in launcher["head_start_ray_commands"])
    assert all(
        "RAY_AUTH_MODE=token" in line
        for line in (*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"])
        if "ray start" in line
    )
    assert any("-c ~/rayunlearn/constraints.txt" in line for line in launcher["setup_commands"])


def test_the_image_takes_the_pinned_versions_and_runs_without_rights() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("-c constraints.txt") == 2 and "USER ray" in text
    copied = re.findall(r"^COPY --chown=ray (.+) \S+$", text, re.M)
    sent = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert {name for line in copied for name in line.split()} <= sent
    assert all((ROOT / name).exists() for name in sent)
