"""The KubeRay manifests: fields that exist, KubeRay's own rules, and what the README promises of them."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
from infra_files import INFRA, ROOT, read_document, read_documents
from kuberay_fields import RAY_JOB, unknown_fields

KUBERAY = INFRA / "kuberay"
JOB = read_document(KUBERAY / "rayjob.yaml")
CLUSTER = read_document(KUBERAY / "raycluster.yaml")
SPEC: dict[str, Any] = CLUSTER["spec"]
HEAD: dict[str, Any] = SPEC["headGroupSpec"]["template"]["spec"]
WORKERS: list[dict[str, Any]] = [group["template"]["spec"] for group in SPEC["workerGroupSpecs"]]
PODS = [HEAD, *WORKERS]


def test_every_field_is_one_that_kuberay_knows() -> None:
    assert JOB["spec"].keys() <= set(RAY_JOB)
    assert unknown_fields(SPEC) == []
    misspelt = copy.deepcopy(SPEC)
    misspelt["workerGroupSpecs"][0]["template"]["spec"]["toleration"] = []
    assert unknown_fields(misspelt) == ["gpu-spot.pod.toleration"]


def test_job_and_cluster_describe_the_same_cluster() -> None:
    assert JOB["spec"]["rayClusterSpec"] == SPEC
    assert JOB["metadata"]["namespace"] == CLUSTER["metadata"]["namespace"]


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder of KubeRay's CRDs")
@pytest.mark.parametrize(("file", "document"), [("ray.io_rayjobs", JOB), ("ray.io_rayclusters", CLUSTER)])
def test_against_the_crds(file: str, document: dict[str, Any]) -> None:
    import jsonschema

    crd = read_document(Path(os.environ["KUBERAY_CRDS"]) / f"{file}.yaml")
    version = next(version for version in crd["spec"]["versions"] if version["name"] == document["apiVersion"][7:])
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft7Validator(schema).validate(document)


def _closed(schema: Any) -> Any:
    """A CRD's schema as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: _closed(value) for key, value in schema.items()}
    if "properties" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def test_kuberays_rules_for_jobs_in_a_sidecar() -> None:
    """validateRayJobSpec and validateRayClusterSpec of KubeRay 1.7, as far as they touch these manifests."""
    job = JOB["spec"]
    assert job["submissionMode"] == "SidecarMode"
    assert not {"clusterSelector", "submitterPodTemplate", "submitterConfig"} & job.keys()
    assert job["backoffLimit"] > 0
    assert job["ttlSecondsAfterFinished"] == 0 or job["shutdownAfterJobFinishes"]
    assert SPEC["enableInTreeAutoscaling"]
    assert SPEC["autoscalerOptions"]["version"] == "v2"
    assert SPEC["autoscalerOptions"]["upscalingMode"] in {"Conservative", "Default", "Aggressive"}
    assert all(pod.get("restartPolicy", "Never") == "Never" for pod in PODS)


def test_the_token_is_on_and_nothing_is_exposed() -> None:
    assert SPEC["authOptions"] == {"mode": "token"}
    assert SPEC["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not SPEC["headGroupSpec"].get("enableIngress")


def test_the_ray_version_is_the_locked_one() -> None:
    locked = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert SPEC["rayVersion"] == locked.group(1)


def test_pods_are_not_root_and_cannot_become_it() -> None:
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_head_only_drives_and_workers_have_gpus_on_spot() -> None:
    assert SPEC["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "tolerations" not in HEAD
    for group, pod in zip(SPEC["workerGroupSpecs"], WORKERS, strict=True):
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}
        for container in pod["containers"]:
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            assert container["resources"]["requests"]["nvidia.com/gpu"] == "1"


def test_nothing_that_saves_nodes_moves_the_head() -> None:
    annotations = SPEC["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"  # Karpenter heeds no other, and consolidates by default


def test_the_drain_ends_before_the_grace_period() -> None:
    for pod in PODS:
        (container,) = pod["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert int(command[command.index("--deadline") + 1]) < pod["terminationGracePeriodSeconds"]
    assert "stop_driver.py" in HEAD["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]
    assert all("drain_node.py" in pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1] for pod in WORKERS)


def test_volumes_are_mounted_and_shared_memory_is_memory() -> None:
    for pod in PODS:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts.values()) == volumes.keys()
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def test_the_network_policy_covers_every_pod_and_lets_in_known_ones_only() -> None:
    policy = read_document(KUBERAY / "network-policy.yaml")
    assert policy["metadata"]["namespace"] == CLUSTER["metadata"]["namespace"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    groups = [SPEC["headGroupSpec"], *SPEC["workerGroupSpecs"]]
    assert all(selected <= group["template"]["metadata"]["labels"].items() for group in groups)
    known = {port["containerPort"] for pod in PODS for port in pod["containers"][0]["ports"]}
    for rule in policy["spec"]["ingress"]:
        assert rule["from"]  # an empty list lets everybody in
        within = all("namespaceSelector" not in source for source in rule["from"])
        assert within or {port["port"] for port in rule["ports"]} <= known
    to_dashboard = [
        rule for rule in policy["spec"]["ingress"] if {"protocol": "TCP", "port": 8265} in rule.get("ports", [])
    ]
    assert len(to_dashboard) == 1
    assert all("podSelector" in source for source in to_dashboard[0]["from"])


def test_the_service_accounts_exist() -> None:
    accounts = read_documents(KUBERAY / "service-accounts.yaml")
    names = {account["metadata"]["name"] for account in accounts}
    assert {pod["serviceAccountName"] for pod in PODS} == names
    assert {account["metadata"]["namespace"] for account in accounts} == {CLUSTER["metadata"]["namespace"]}
    assert all(pod["automountServiceAccountToken"] is False for pod in WORKERS)
