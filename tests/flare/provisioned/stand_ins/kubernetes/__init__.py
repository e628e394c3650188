"""Stands in for the client of Kubernetes: a pod is a process in a folder of its own, in ``$PODS``.

Its workspace begins with what is mounted, the files of the Secret with the kit's keys. Its environment has the pod's
variables alone, and ``$IMAGE_PATH`` as the path of Python's modules: what is installed in the image.
"""

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class ApiException(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class Configuration:
    """Where the cluster is: here."""

    def get_default_copy(self) -> "Configuration":
        return self

    @classmethod
    def set_default(cls, default: "Configuration") -> None:
        pass


class CoreV1Api:
    """What FLARE's launcher asks of a cluster."""

    def __init__(self) -> None:
        self._secrets: dict[str, Any] = {}
        self._pods: dict[str, _Pod] = {}

    def create_namespaced_secret(self, namespace: str, body: Any) -> None:
        if body["metadata"]["name"] in self._secrets:
            raise ApiException(409)
        self._secrets[body["metadata"]["name"]] = body

    def replace_namespaced_secret(self, name: str, namespace: str, body: Any) -> None:
        self._secrets[name] = body

    def patch_namespaced_secret(self, name: str, namespace: str, body: Any) -> None:
        pass

    def delete_namespaced_secret(self, name: str, namespace: str) -> None:
        self._secrets.pop(name, None)

    def create_namespaced_pod(self, body: Any, namespace: str) -> Any:
        if body["metadata"]["name"] in self._pods:
            raise ApiException(409)
        self._pods[body["metadata"]["name"]] = _Pod(body["spec"], self._secrets)
        return SimpleNamespace(metadata=SimpleNamespace(uid="1"))

    def read_namespaced_pod(self, name: str, namespace: str) -> Any:
        if name not in self._pods:
            raise ApiException(404)
        return self._pods[name].shown()

    def delete_namespaced_pod(self, name: str, namespace: str, grace_period_seconds: int) -> None:
        if name not in self._pods:
            raise ApiException(404)
        self._pods.pop(name).process.kill()

    def list_namespaced_event(self, namespace: str, field_selector: str) -> Any:
        return SimpleNamespace(items=[])


class _Pod:
    def __init__(self, spec: Any, secrets: dict[str, Any]):
        (container,) = spec["containers"]
        workspace = next(one["mountPath"] for one in container["volumeMounts"] if one["name"] == "workspace-job")
        root = Path(tempfile.mkdtemp(dir=os.environ["PODS"]))
        (root / "startup").mkdir()
        kit = next(one["secret"]["secretName"] for one in spec["volumes"] if one["name"] == "startup-kit")
        for name, content in secrets[kit]["data"].items():
            (root / "startup" / name).write_bytes(base64.b64decode(content))
        environment = {one["name"]: _value(one, secrets) for one in container["env"]}
        self.name = container["name"]
        with open(root / "console.log", "wb") as log:
            self.process = subprocess.Popen(
                [word.replace(workspace, str(root)) for word in (*container["command"], *container["args"])],
                env={**environment, "PYTHONPATH": os.environ["IMAGE_PATH"]},
                cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def shown(self) -> Any:
        code = self.process.poll()
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        state = SimpleNamespace(terminated=None if code is None else SimpleNamespace(exit_code=code))
        statuses = [SimpleNamespace(name=self.name, state=state)]
        return SimpleNamespace(status=SimpleNamespace(phase=phase, container_statuses=statuses))


def _value(variable: Any, secrets: dict[str, Any]) -> str:
    if "value" in variable:
        return variable["value"]
    source = variable["valueFrom"]["secretKeyRef"]
    return secrets[source["name"]]["stringData"][source["key"]]


def _module(name: str, **content: object) -> ModuleType:
    module = sys.modules[f"{__name__}.{name}"] = ModuleType(f"{__name__}.{name}")
    vars(module).update(content)
    return module


config = _module("config", load_kube_config=lambda path: None, load_incluster_config=lambda: None)
client = _module("client", Configuration=Configuration)
_module("client.rest", ApiException=ApiException)
_module("client.api", core_v1_api=_module("client.api.core_v1_api", CoreV1Api=CoreV1Api))
