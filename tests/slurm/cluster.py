"""Real Slurm on this machine: munged, slurmctld and a slurmd for each node, all below one folder.

Where the machine allows it, each node has a network, a host name, mounts and processes of its own, so that a node that
loses power or does not see a folder is what it is on a cluster. Elsewhere the nodes are slurmds on the loopback device.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
"""States of a job that is over."""
SETTINGS = """\
ClusterName=here
SlurmctldHost={host}({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/spool/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
MpiDefault=none
JobRequeue=1
KillWait=30
MinJobAge=600
ReturnToService=2
SlurmdTimeout={slurmd_timeout_s}
SlurmctldTimeout=30
MessageTimeout=20
NodeName=node[1-{nodes}] {addresses} CPUs=2 RealMemory={memory_mb} State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What of SLURM is not installed."""
    return [name for name in DAEMONS if shutil.which(name, path=_path()) is None]


def can_isolate() -> bool:
    """Whether this machine lets nodes have namespaces of their own."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    tried = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    bridge = f"t{os.getpid() % 100000}"
    if subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        return False
    made = subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)
    return made.returncode == 0


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """Starts on `start`, ends what it started on `stop`.

    Args:
        folder: everything it writes; every folder above it must be open to all (munged insists).
        num_nodes: named node1, node2, ...
        slurmd_timeout_s: until a node that does not answer is down.
        private: a folder that every node has a private copy of; needs `can_isolate`.
    """

    def __init__(
        self, folder: Path, num_nodes: int = 2, *, slurmd_timeout_s: int = 10, private: Path | None = None
    ) -> None:
        self.folder = folder
        self.names = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.slurmd_timeout_s = slurmd_timeout_s
        self.private = private
        self.isolated = can_isolate()
        assert self.isolated or private is None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._net = f"p{os.getpid() % 10000}x{random.randrange(100)}"
        self._subnet = _free_subnet()
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        for name in ("munge", "state", "log", "spool"):
            (self.folder / name).mkdir(parents=True)
        for path in (self.folder, self.folder / "munge"):
            path.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        port = 20000 + random.randrange(4000) * 2
        controller = f"{self._subnet}.254" if self.isolated else "127.0.0.1"
        last = len(self.names)
        if self.isolated:
            self._make_network(controller)
            addresses = f"NodeHostname=node[1-{last}] NodeAddr={self._subnet}.[1-{last}] Port={port + 1}"
        else:
            addresses = f"NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port=[{port + 1}-{port + last}]"
        self._write_hosts()
        settings = SETTINGS.format(
            host=socket.gethostname(), controller=controller, folder=self.folder, port=port, nodes=last,
            slurmd_timeout_s=self.slurmd_timeout_s, addresses=addresses, memory_mb=4000,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(settings)
        munge = self.folder / "munge"
        files = ("socket", "key", "seed", "pid", "log")
        options = [f"--{name}{'' if name == 'socket' else '-file'}={munge / name}" for name in files]
        self._begin("munged", ["munged", "--foreground", *options])
        until(lambda: (munge / "socket").exists(), 20, "munged")
        self._begin("slurmctld", ["slurmctld", "-D", "-i"])
        for name in self.names:
            self.power_on(name)
        until(lambda: self.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == self.names, 60, "the nodes")

    def stop(self) -> None:
        for name in reversed(list(self._processes)):
            process = self._processes[name]
            if name in self.names:
                self.power_off(name)
                continue
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.isolated:
            for index in range(len(self.names)):
                subprocess.run(["ip", "netns", "del", f"{self._net}n{index + 1}"], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", self._net], capture_output=True, check=False)
        else:
            hosts = Path("/etc/hosts")
            hosts.write_text("".join(line for line in hosts.open() if self._net not in line))

    def power_on(self, name: str) -> None:
        """Start a node's slurmd."""
        slurmd = ["slurmd", "-D", "-N", name]
        if self.isolated:
            private = f"mount -t tmpfs tmpfs {self.private};" if self.private is not None else ""
            inside = f'hostname "$1"; mount --bind "$2" /etc/hosts; {private} shift 2; "$@" & wait'
            net = f"/run/netns/{self._net}n{self.names.index(name) + 1}"
            apart = "--uts --mount --pid --fork --kill-child --mount-proc".split()
            shell = ["bash", "-c", inside, "bash", name, str(self.folder / "hosts")]
            slurmd = ["nsenter", f"--net={net}", "unshare", *apart, *shell, *slurmd]
        self._begin(name, slurmd)

    def power_off(self, name: str) -> None:
        """End a node and all that it runs, as a loss of power does."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.kill()
        process.wait()
        if not self.isolated:
            for path in Path("/proc").glob("[0-9]*"):
                _kill_if_on(path, name, str(self.folder))

    def power_on_all(self) -> None:
        """Bring back nodes that were powered off."""
        for name in self.names:
            if name not in self._processes:
                self.power_on(name)
                self.ask("scontrol", "update", f"nodename={name}", "state=resume")
        until(lambda: "down" not in self.ask("sinfo", "-h", "-o", "%T"), 60, "the nodes")

    def sbatch(self, script: Path, *options: str, cwd: Path) -> str:
        """Submit; returns the job's number."""
        done = subprocess.run(["sbatch", "--parsable", *options, str(script)], env=self.environment, cwd=cwd,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def ask(self, *command: str) -> str:
        """What a SLURM command prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        ).stdout.strip()

    def tell(self, *command: str) -> None:
        """Run a SLURM command that must succeed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (command, done.stderr)

    def state(self, job: str) -> str:
        """JobState, such as RUNNING."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        match = re.search(rf"(?:^|\s){name}=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", job))
        return match[1] if match else ""

    def until_state(self, job: str, *states: str, timeout_s: float = 120.0) -> str:
        """Wait for one of these states, or for an end; returns the state."""
        until(
            lambda: self.state(job) in (*ENDS, *states), timeout_s, f"job {job} to be {states} (is {self.state(job)})"
        )
        return self.state(job)

    def let_run(self, job: str) -> None:
        """A requeued job waits two minutes by itself; at once the nodes would refuse its old credential."""
        until(lambda: self.state(job) == "PENDING", 60, "the requeue")
        time.sleep(4)
        self.tell("scontrol", "update", f"jobid={job}", "starttime=now")

    def _begin(self, name: str, command: list[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def _write_hosts(self) -> None:
        if self.isolated:
            lines = [f"{self._subnet}.{index + 1} {name}\n" for index, name in enumerate(self.names)]
            (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{''.join(lines)}")
        else:
            with open("/etc/hosts", "a") as file:
                file.write(f"127.0.0.1 {' '.join(self.names)} # {self._net}\n")

    def _make_network(self, controller: str) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True)

        ip("link", "add", self._net, "type", "bridge")
        ip("addr", "add", f"{controller}/24", "dev", self._net)
        ip("link", "set", self._net, "up")
        for index in range(len(self.names)):
            name, link = f"{self._net}n{index + 1}", f"{self._net}v{index + 1}"
            ip("netns", "add", name)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link, "master", self._net, "up")
            for words in (("link", "set", "lo", "up"), ("addr", "add", f"{self._subnet}.{index + 1}/24", "dev", "eth0"),
                          ("link", "set", "eth0", "up")):  # fmt: skip
                ip("-n", name, *words)


def _free_subnet() -> str:
    """The first three numbers of a subnet that no interface here has; other tests may look for one, too."""
    if shutil.which("ip") is None:
        return ""
    taken = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    offset = os.getpid() % 250
    candidates = (f"10.231.{1 + (offset + index) % 250}" for index in range(250))
    return next(subnet for subnet in candidates if f" {subnet}." not in taken)


def _kill_if_on(process: Path, node: str, folder: str) -> None:
    try:
        command = (process / "cmdline").read_bytes().decode(errors="replace")
        environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return
    ours = any(folder in line for line in environment if line.startswith("SLURM_CONF="))
    if ours and (f"SLURMD_NODENAME={node}" in environment or (command.startswith("slurmstepd") and node in command)):
        try:
            os.kill(int(process.name), signal.SIGKILL)
        except ProcessLookupError:
            return


def until(holds: object, timeout_s: float, what: str) -> None:
    """Wait for a condition."""
    assert callable(holds)
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)
