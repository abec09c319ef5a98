"""The AWS cluster file passes Ray's own validation, and fits the policies and files beside it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from infra_files import INFRA, ROOT, read_document

AWS = INFRA / "aws"
CLUSTER: dict[str, Any] = read_document(AWS / "cluster.yaml")
NODES: dict[str, Any] = CLUSTER["available_node_types"]
WORKERS = {name: node for name, node in NODES.items() if name != CLUSTER["head_node_type"]}


def test_ray_accepts_it() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(json.loads(json.dumps(CLUSTER)))
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == NODES.keys()  # no default node type crept in
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_ray_refuses_a_misspelt_field() -> None:
    pytest.importorskip("ray")
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError):
        validate_config(prepare_config({**json.loads(json.dumps(CLUSTER)), "idle_timeout_minute": 5}))


def test_ec2_knows_the_launch_settings() -> None:
    """botocore's own model of RunInstances, without calling it."""
    session = pytest.importorskip("botocore.session")
    from botocore.validate import validate_parameters

    shape = session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in NODES.values():
        validate_parameters({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)


def test_the_head_drives_on_demand_and_workers_are_spot() -> None:
    head = NODES[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert WORKERS
    for node in WORKERS.values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node["min_workers"] == 0 < node["max_workers"] <= CLUSTER["max_workers"]


def test_the_token_is_on_every_node_and_the_dashboard_on_loopback() -> None:
    assert any(target.endswith("/.ray/auth_token") for target in CLUSTER["file_mounts"])
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in CLUSTER[name] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
    assert "--dashboard-host=127.0.0.1" in " ".join(CLUSTER["head_start_ray_commands"])


def test_what_the_nodes_run_is_copied_to_them() -> None:
    started = " ".join(CLUSTER["worker_start_ray_commands"])
    (script,) = re.findall(r"~/nodes/(\w+\.py)", started)
    assert (ROOT / CLUSTER["file_mounts"]["/home/ubuntu/nodes"] / script).is_file()
    recipe = (AWS / "README.md").read_text()
    assert "--wheel-dir dist" in recipe  # dist/ is made by the recipe
    assert "constraints.txt dist/" in recipe


def test_ray_up_brings_new_code_of_the_same_version() -> None:
    """pip leaves an installed wheel of the same version alone: the head would run older code than new workers."""
    installs = [command for command in CLUSTER["setup_commands"] if ".whl" in command]
    assert {"--force-reinstall", "--no-deps"} <= set(installs[-1].split())
    assert all("ls -t " in command and "head -n 1" in command for command in installs)  # rsync deletes nothing


def test_the_recipe_names_the_files_that_have_something_to_replace() -> None:
    (sentence,) = re.findall(r"^Replace .*", (AWS / "README.md").read_text(), re.MULTILINE)
    for file in [*AWS.glob("*.json"), AWS / "cluster.yaml"]:
        holds = re.search(r"\b(BUCKET|ACCOUNT)\b", re.sub(r"#.*", "", file.read_text()))
        assert (f"`{file.name}`" in sentence) == bool(holds)


def test_every_node_has_the_role_that_the_recipe_makes() -> None:
    recipe = (AWS / "README.md").read_text()
    for node in NODES.values():
        profile = node["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert profile in recipe
    head = json.loads((AWS / "head-policy.json").read_text())
    passed = [statement["Resource"] for statement in head["Statement"] if statement["Action"] == ["iam:PassRole"]]
    assert passed == ["arn:aws:iam::ACCOUNT:role/data-engine-worker"]
    owned = [statement["Condition"]["StringEquals"] for statement in head["Statement"] if "Condition" in statement]
    assert {"ec2:ResourceTag/ray-cluster-name": CLUSTER["cluster_name"]} in owned


def test_the_policies_name_what_they_allow() -> None:
    for file in AWS.glob("*-policy.json"):
        for statement in json.loads(file.read_text())["Statement"]:
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert not [action for action in actions if "*" in action]
    files = set(re.findall(r"file://([\w-]+\.json)", (AWS / "README.md").read_text()))
    assert files == {file.name for file in AWS.glob("*-policy.json")}
