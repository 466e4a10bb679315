"""Runs a scan on a Ray cluster of three hosts, which are network namespaces of this machine.

    sudo -E .venv/bin/python -m tools.cluster

Each host has an address, a host name and a `ray start` of its own. In turn:

1. One host has another version of glitchrun: the run is refused with its name and exit code 4.
2. One host has other contents under the path of the model: refused too.
3. All hosts agree. One is cut off in the middle of the scan: the run ends well, and its
   tokens.jsonl is that of a run without workers, byte by byte.

It needs root, `ip` (iproute2) and `unshare`. The hosts are removed at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workers import Bench
from tests.support.tiny_models import tiny_llama

NET = "10.77.31"
BRIDGE = "glitchrun0"
TOKENS = 4096
BIN = Path(sys.executable).parent
EXECUTION = "{engine: ray, address: auto, workers: 3}"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # A host that is cut off is missed after about 6 s instead of a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_ADDRESS": f"{NET}.1:6379",
}


class Host:
    """A network namespace with a host name, an address and a node of Ray."""

    def __init__(self, number: int, root: Path) -> None:
        self.number, self.root = number, root
        self.name = f"glitchrun-{number}"
        self.node: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Makes the namespace, and connects it to the others."""
        link = f"gr{self.number}"
        _sh(f"ip netns add {self.name}")
        _sh(f"ip link add {link} type veth peer name eth0 netns {self.name}")
        _sh(f"ip link set {link} master {BRIDGE} up")
        _sh(f"ip -n {self.name} address add {NET}.{self.number}/24 dev eth0")
        _sh(f"ip -n {self.name} link set eth0 up")
        _sh(f"ip -n {self.name} link set lo up")

    def words(self, command: str) -> list[str]:
        """A command on this host, with its host name."""
        inner = f"hostname {self.name} && exec {command}"
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c", inner]

    def start(self, path: str = "", mount: str = "") -> None:
        """Starts a node with `path` first in PYTHONPATH, after the shell command `mount`."""
        kind = "--head --port=6379" if self.number == 1 else f"--address={NET}.1:6379"
        head = "--include-dashboard=false" if self.number == 1 else ""
        command = (
            f"{BIN}/ray start --block {kind} {head} --node-ip-address={NET}.{self.number} "
            f"--num-cpus=1 --disable-usage-stats --object-store-memory=100000000"
        )
        if self.number == 1:
            command += f" --temp-dir={self.root}/ray"
        (self.root / "ray").mkdir(exist_ok=True)
        words = self.words(command)
        own_folder = self.root / f"ray-{self.number}"
        own_folder.mkdir(exist_ok=True)
        mounts = [f"mount --bind {own_folder} {self.root}/ray", *filter(None, [mount])]
        words[-1] = " && ".join([*mounts, words[-1]])
        own = f"{path}:{os.environ.get('PYTHONPATH', '')}" if path else None
        environment = {**os.environ, **ENVIRONMENT, **({"PYTHONPATH": own} if own else {})}
        environment.pop("RAY_ADDRESS")
        log = (self.root / f"node-{self.number}").open("ab")
        self.node = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True
        )

    def stop(self) -> None:
        """Ends every process of the host."""
        pids = _sh(f"ip netns pids {self.name}", check=False).split()
        for pid in pids:
            subprocess.run(["kill", "-9", pid], check=False)
        if self.node is not None:
            self.node.wait()
        self.node = None

    def cut_off(self) -> None:
        """Unplugs the host from the network."""
        _sh(f"ip -n {self.name} link set eth0 down")


class Cluster(Bench):
    """Three hosts, and commands on the first one."""

    def __init__(self, root: Path, model: Path) -> None:
        super().__init__(root, TOKENS, str(model))
        self.hosts = [Host(number, root) for number in (1, 2, 3)]

    def on_head(self, folder: str) -> subprocess.Popen[bytes]:
        """`glitchrun apply` on the first host."""
        self.write(folder, EXECUTION)
        words = self.hosts[0].words(f"{sys.executable} -m glitchrun apply spec.yaml")
        words[-1] = f"mount --bind {self.root}/ray-1 {self.root}/ray && {words[-1]}"
        with (self.root / folder / "log").open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=self.root / folder,
                env={**os.environ, **ENVIRONMENT},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def refused(self, folder: str, host: Host, why: str) -> None:
        """Applies the spec, which must be refused with the name of a host."""
        code = self.on_head(folder).wait()
        log = (self.root / folder / "log").read_text()
        assert code == 4, f"exit code {code}\n{log}"
        assert f"worker on {host.name} is refused" in log, log
        assert why in log, log
        (line,) = {line for line in log.splitlines() if "is refused" in line}
        print(f"refused with exit code 4: {line}", flush=True)

    def wait_for(self, nodes: int) -> None:
        """Waits until so many nodes have joined."""
        for _ in range(40):
            words = self.hosts[0].words(f"{BIN}/ray status")
            found = subprocess.run(
                words,
                env={**os.environ, **ENVIRONMENT},
                capture_output=True,
                text=True,
                check=False,
            )
            if f"/{nodes}.0 CPU" in found.stdout:
                return
            time.sleep(1)
        raise AssertionError(f"{nodes} nodes did not join")


def _sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{command}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Runs the scenarios."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare"))):
        raise SystemExit("network namespaces need root, ip (iproute2) and unshare")
    root = Path(tempfile.mkdtemp(prefix="gr", dir="/tmp"))
    cluster = Cluster(root, tiny_llama(root / "model", vocab=9000, hidden=256, layers=6))
    other = tiny_llama(root / "other", vocab=9000, hidden=256, layers=6, seed=1)
    first, second, third = cluster.hosts
    try:
        _sh(f"ip link add {BRIDGE} type bridge")
        _sh(f"ip link set {BRIDGE} up")
        for host in cluster.hosts:
            host.create()
        _scenarios(cluster, other, first, second, third)
    finally:
        for host in cluster.hosts:
            host.stop()
            _sh(f"ip netns delete {host.name}", check=False)
        _sh(f"ip link delete {BRIDGE}", check=False)
        shutil.rmtree(root, ignore_errors=True)


def _scenarios(cluster: Cluster, other: Path, first: Host, second: Host, third: Host) -> None:
    expected = cluster.finished("alone", "{engine: local}")
    strange = cluster.root / "strange" / "glitchrun-9.9.dist-info"
    strange.mkdir(parents=True)
    (strange / "METADATA").write_text("Metadata-Version: 2.1\nName: glitchrun\nVersion: 9.9\n")
    first.start()
    cluster.wait_for(1)
    second.start(path=str(strange.parent))
    third.start(mount=f"mount --bind {other} {cluster.model}")
    cluster.wait_for(3)
    cluster.refused("version", second, "it has glitchrun 9.9")
    second.stop()
    second.start()
    cluster.wait_for(3)
    cluster.refused("contents", third, "are not those of this machine")
    third.stop()
    third.start()
    cluster.wait_for(3)
    process = cluster.on_head("cut")
    while process.poll() is None and len(cluster.times("cut")) < 8:
        time.sleep(0.2)
    done = cluster.times("cut")[-1][1]
    third.cut_off()
    assert process.poll() is None, "the scan ended before the host was cut off"
    found = cluster.ended(process, "cut")
    assert found == expected, "tokens.jsonl differs"
    print(
        f"{third.name} cut off after {done} of {TOKENS} tokens: the run ended well, the same tokens"
    )


if __name__ == "__main__":
    main()
