"""Machines that are not there: network namespaces with a name, an address and a cable between them, which tests cut."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'  # in a mount and UTS namespace
PREFIX = "rcnn-test-"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def lacking() -> str:
    """Why this machine cannot play several hosts, or nothing."""
    if sys.platform != "linux" or os.geteuid():
        return "simulated hosts need root on Linux"
    for program in ("ip", "unshare", "mount", "hostname"):
        if not shutil.which(program):
            return f"simulated hosts need the program {program} (iproute2, util-linux)"
    name = PREFIX + secrets.token_hex(3)
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "cable", "type", "veth", "peer", "name", "end")
        subprocess.run([*_inside(name, Path("/etc/hosts"), name), "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        return f"simulated hosts: {' '.join(error.cmd)} was refused ({str(error.stderr).strip()})"
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return ""


def _inside(network: str, names: Path, host: str) -> list[str]:
    """What stands before a command that a machine runs."""
    return ["ip", "netns", "exec", network, "unshare", "--mount", "--uts", "sh", "-c", START, "-", str(names), host]


class Host:
    """One of two machines; `network` is the name of its namespace, `folder` what only it has."""

    def __init__(self, name: str, address: str, network: str, folder: Path) -> None:
        self.name = name
        self.address = address
        self.network = network
        self.folder = folder

    def start(self, command: list[str], log: Path, **env: str) -> subprocess.Popen[bytes]:
        """The command as this machine would run it, in a session of its own, what it says in a file."""
        inside = _inside(self.network, self.folder / "hosts", self.name)
        with log.open("ab") as out:
            return subprocess.Popen(
                [*inside, *command],
                stdout=out, stderr=subprocess.STDOUT, cwd=self.folder, env=os.environ | env, start_new_session=True,
            )  # fmt: skip

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self.network, "link", "set", "cable", "down")

    def mend(self) -> None:
        """Plug it in again."""
        ip("-n", self.network, "link", "set", "cable", "up")

    def processes(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.network], check=True, capture_output=True, text=True)
        return [int(pid) for pid in done.stdout.split()]

    def die(self) -> None:
        """Kill everything that runs there, at once."""
        until = time.monotonic() + 20
        while pids := self.processes():
            assert time.monotonic() < until, pids
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Machines `host-a` and `host-b` with a cable between them; nothing of them is left at the end."""
    token = secrets.token_hex(3)
    hosts = [
        Host(f"host-{letter}", f"10.77.0.{number}", f"{PREFIX}{token}-{letter}", folder / f"host-{letter}")
        for number, letter in enumerate("ab", start=1)
    ]
    names = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
    try:
        for host in hosts:
            host.folder.mkdir()
            (host.folder / "hosts").write_text(names)
            ip("netns", "add", host.network)
            ip("-n", host.network, "link", "set", "lo", "up")
        a, b = (host.network for host in hosts)
        ip("-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b)
        for host in hosts:
            ip("-n", host.network, "address", "add", f"{host.address}/24", "dev", "cable")
            host.mend()
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            if Path("/run/netns", host.network).exists():
                host.die()
                ip("netns", "delete", host.network)
