"""The fields of KubeRay's v1 resources that exist in KubeRay 1.6, as names: a misspelt one is dropped by Kubernetes.

Taken from ray-operator/config/crd/bases of github.com/ray-project/kuberay at v1.6.2 (Apache-2.0). The whole schemas are
two megabytes; `KUBERAY_CRDS=<that folder> pytest tests/infra/test_kuberay.py` checks against them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

RAY_JOB = [
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
]
RAY_CLUSTER = [
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "rayVersion",
    "suspend",
    "upgradeStrategy",
    "workerGroupSpecs",
]
AUTOSCALER = [
    "env",
    "envFrom",
    "idleTimeoutSeconds",
    "image",
    "imagePullPolicy",
    "resources",
    "securityContext",
    "upscalingMode",
    "version",
    "volumeMounts",
]
HEAD_GROUP = ["enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"]
WORKER_GROUP = [
    "groupName",
    "idleTimeoutSeconds",
    "labels",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "resources",
    "scaleStrategy",
    "suspend",
    "template",
]
POD = [
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "imagePullSecrets",
    "initContainers",
    "nodeSelector",
    "priorityClassName",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
]
CONTAINER = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "volumeMounts",
    "workingDir",
]


def unknown_fields(cluster: dict[str, Any]) -> list[str]:
    """Fields of a RayCluster's spec that KubeRay does not know, as paths."""
    found = _beyond("spec", cluster, RAY_CLUSTER)
    found += _beyond("autoscalerOptions", cluster["autoscalerOptions"], AUTOSCALER)
    found += _beyond("authOptions", cluster["authOptions"], {"mode", "secretName", "enableK8sTokenAuth"})
    groups = [("headGroupSpec", cluster["headGroupSpec"], HEAD_GROUP)]
    groups += [(group["groupName"], group, WORKER_GROUP) for group in cluster["workerGroupSpecs"]]
    for name, group, fields in groups:
        found += _beyond(name, group, fields)
        found += _beyond(f"{name}.template", group["template"], {"metadata", "spec"})
        pod = group["template"]["spec"]
        found += _beyond(f"{name}.pod", pod, POD)
        for container in pod["containers"]:
            found += _beyond(f"{name}.{container['name']}", container, CONTAINER)
    return found


def _beyond(where: str, value: dict[str, Any], fields: Iterable[str]) -> list[str]:
    return [f"{where}.{key}" for key in value if key not in fields]
