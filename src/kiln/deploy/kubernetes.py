"""Renders a deployment as Kubernetes manifests: a Deployment and the Service before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiln.deploy.records import API_KEY, CACHE, CAPABILITIES, START_PERIOD_S, STOP_S, TOKEN

if TYPE_CHECKING:
    from kiln.deploy.records import Deployment

SECRET = "kiln-hf-token"  # noqa: S105 - the name of the secret
_KEYS = ((TOKEN, "token"), (API_KEY, "api-key"))  # variables, and the secret's keys with their values
_PULL = {"never": "Never", "missing": "IfNotPresent", "always": "Always"}
_POLL_S = 10


def render(made: Deployment) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two manifests as data."""
    labels = {"app.kubernetes.io/name": made.name}
    described = labels | {"app.kubernetes.io/version": made.release, "app.kubernetes.io/component": "vllm"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": made.name, "labels": described},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            # the GPUs that a new pod waits for are those of the old one
            "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": described}, "spec": _pod(made)},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": made.name, "labels": described},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": made.port, "targetPort": "http"}]},
    }
    return deployment, service


def _pod(made: Deployment) -> dict[str, Any]:
    claim = {"persistentVolumeClaim": {"claimName": made.cache}} if made.cache else {"emptyDir": {}}
    shm = {"emptyDir": {"medium": "Memory", "sizeLimit": f"{made.shm_gib}Gi"}}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": STOP_S,
        "nodeSelector": dict(made.node_labels),
        **({"securityContext": {"supplementalGroups": list(made.groups)}} if made.groups else {}),
        "containers": [_container(made)],
        "volumes": [{"name": "shm", **shm}, {"name": "cache", **claim}],
    }


def _container(made: Deployment) -> dict[str, Any]:
    program, *words = made.command
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "name": "vllm",
        "image": made.image,
        "imagePullPolicy": _PULL[made.pull],
        "command": [program],
        "args": [_literal(word) for word in words],
        "env": [
            *({"name": name, "value": _literal(value)} for name, value in made.env),
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key, "optional": True}}}
                for name, key in _KEYS
            ),
        ],
        "ports": [{"name": "http", "containerPort": made.server_port}],
        "resources": {"limits": {f"{made.vendor}.com/gpu": made.gpus}},
        "securityContext": _security(made),
        "startupProbe": health
        | {"periodSeconds": _POLL_S, "failureThreshold": START_PERIOD_S // _POLL_S, "timeoutSeconds": 5},
        "readinessProbe": health | {"periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": health | {"periodSeconds": 30, "failureThreshold": 3, "timeoutSeconds": 20},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "cache", "mountPath": CACHE}],  # noqa: S108
    }


def _security(made: Deployment) -> dict[str, Any]:
    added = {"add": list(made.cap_add)} if made.cap_add else {}
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": [CAPABILITIES], **added},
        "seccompProfile": {"type": "Unconfined" if made.seccomp == "unconfined" else "RuntimeDefault"},
    }


def _literal(text: str) -> str:
    """Keep Kubernetes from taking `$(NAME)` for a variable."""
    return text.replace("$(", "$$(")
