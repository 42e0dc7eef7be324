"""The chart's pods as processes on this machine: their own commands, environments and probes, on ports and paths of their own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster.core.grants import Grants, line
from tests.helm.chart import documents
from tests.live import eventually as _eventually
from tests.live import free_port

TOKEN = "0123456789abcdef" * 4
PORTS = ("6380", "6381", "6382", "6383", "6384", "6385", "6386", "8700", "8701")
EVERYTHING = Grants(read=[[]], write=[[]], admin=True)
STOP_S = 60.0
READ_ONLY = """
set -e
mount --make-rprivate /
while [ "$1" != -- ]; do mount --bind "$1" "$1"; shift; done
shift
mount -o remount,bind,ro /
exec "$@"
"""
"""In a mount namespace of its own: the directories before `--` stay writable, then the command runs."""
MAY_UNSHARE = subprocess.run(
    ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", "--", "true"], capture_output=True, check=False
)
eventually = partial(_eventually, timeout_s=90.0, every_s=0.1)
"""Pods take longer than actors."""


class Pod:
    """One pod's container. `restart` makes it anew, as Kubernetes would."""

    def __init__(self, deployment: "Deployment", name: str, spec: dict[str, Any]) -> None:
        self.name = name
        self._deployment = deployment
        self._container = spec["containers"][0]
        # Sockets are below it, and their paths may be 107 bytes long.
        self._tmp = tempfile.mkdtemp(prefix="pod", dir="/tmp")
        self.log = deployment.directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        own = deployment.ports[name] = {port: str(free_port()) for port in PORTS}
        own["6380"] = deployment.gcs
        own["8700"], own["8701"] = deployment.http, deployment.admin

    def start(self) -> None:
        args = [self._here(each) for each in self._container["args"]]
        if args[0] == "node":
            args.append("--node-ip-address=127.0.0.1")
        environment = {"PATH": os.environ["PATH"], "HOME": self._tmp}
        for each in self._container["env"]:
            environment[each["name"]] = TOKEN if each["name"] == "RAY_AUTH_TOKEN" else str(each.get("value", self.name))
        environment |= {"RAY_TMPDIR": self._tmp, "HOME": self._tmp}
        command = [str(Path(sys.executable).parent / self._container["command"][0]), *args]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.namespace(), *command],
                env=environment,
                cwd="/",
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def namespace(self) -> list[str]:
        """What a command begins with to see the container's file systems: read-only, except the pod's volumes."""
        if MAY_UNSHARE.returncode != 0:
            return []
        # All of /tmp, not this pod's alone: on one host, Ray's drivers find the directories of the first node.
        volumes = [tempfile.gettempdir(), str(self._deployment.store), "/dev/shm"]
        return ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *volumes, "--"]

    def _here(self, text: str) -> str:
        text = text.replace("$(POD_NAME)", self.name)
        text = re.sub(r"[\w.-]+:6380", f"127.0.0.1:{self._deployment.gcs}", text)
        text = text.replace("/etc/harbor/config", str(self._deployment.directory))
        for port, here in self._deployment.ports[self.name].items():
            text = re.sub(rf"port={port}\b", f"port={here}", text)
        first = 21_000 + 300 * list(self._deployment.ports).index(self.name)
        return text.replace("=20000", f"={first}").replace("=20999", f"={first + 299}")

    def probe(self, kind: str) -> bool:
        """Whether one of its probes succeeds."""
        given = self._container[kind]
        if "tcpSocket" in given:
            try:
                socket.create_connection(("127.0.0.1", self._port(given["tcpSocket"]["port"])), 5).close()
            except OSError:
                return False
            return True
        url = f"http://127.0.0.1:{self._port(given['httpGet']['port'])}{given['httpGet']['path']}"
        try:
            return httpx.get(url, timeout=given["timeoutSeconds"]).status_code == 200
        except httpx.HTTPError:
            return False

    def _port(self, name: str) -> int:
        port = next(each["containerPort"] for each in self._container["ports"] if each["name"] == name)
        return int(self._deployment.ports[self.name][str(port)])

    def terminate(self) -> int:
        """SIGTERM, and the exit code; what is left after the grace would be killed, and is a failure here."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def clean(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        shutil.rmtree(self._tmp, ignore_errors=True)


class Deployment:
    """A release of the chart in mode `static` with one worker and one gateway."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.store.mkdir()
        self.gcs, self.http, self.admin = (str(free_port()) for _ in range(3))
        self.ports: dict[str, dict[str, str]] = {}
        self.url = f"http://127.0.0.1:{self.http}"
        self.key = "hk_everything"
        self.write_keys(everything=EVERYTHING)
        found = documents(
            {
                "auth": {"existingSecret": "keys"},
                "ray": {"auth": {"existingSecret": "ray"}, "logToStderr": False},
                "workers": {"replicas": 1},
                "gateways": {"replicas": 1, "drain": "5s"},
                "config": config,
            },
            "harbor",
        )
        self._config = yaml.safe_load(
            next(each["data"]["harbor.yaml"] for each in found if "harbor.yaml" in each.get("data", {}))
        )
        self._config["gateway"] |= {"host": "127.0.0.1", "port": int(self.http)}
        self._config["gateway"] |= {"admin_host": "127.0.0.1", "admin_port": int(self.admin)}
        self._config["gateway"]["auth"]["keys_file"] = str(directory / "keys")
        self._config["storage"]["path"] = str(self.store)
        self.write_config()
        self.pods = {
            each["metadata"]["name"].rpartition("-")[2]: Pod(
                self,
                each["metadata"]["name"] + ("-0" if each["kind"] == "StatefulSet" else ""),
                each["spec"]["template"]["spec"],
            )
            for each in found
            if each["kind"] in ("StatefulSet", "Deployment")
        }

    def write_config(self, **sections: Any) -> None:
        """Another configuration, as kubelet would put it there: all at once."""
        for name, section in sections.items():
            self._config[name] = {**self._config.get(name, {}), **section} if isinstance(section, dict) else section
        new = self.directory / "harbor.yaml.new"
        new.write_text(yaml.safe_dump(self._config))
        new.replace(self.directory / "harbor.yaml")

    def write_keys(self, **keys: Grants) -> None:
        new = self.directory / "keys.new"
        new.write_text("\n".join(line(name, f"hk_{name}", grants) for name, grants in keys.items()))
        new.replace(self.directory / "keys")

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", **more.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=30, **more)

    def stop(self) -> None:
        for name in ("controller", "gateway", "worker", "head"):
            self.pods[name].clean()
