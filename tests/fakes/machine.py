"""A machine's memory in files, as the kernel writes them."""

from pathlib import Path

MIB = 1024


class Machine:
    """A /proc and a /sys/fs/cgroup of our own. Sizes in MiB."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        self.groups("0::/\n")

    def uses(self, own: int, available: int) -> None:
        (self.proc / "self/status").write_text(f"Name:\tpython\nVmRSS:\t{own * MIB} kB\nThreads:\t1\n")
        (self.proc / "meminfo").write_text(f"MemTotal: {9999 * MIB} kB\nMemAvailable: {available * MIB} kB\n")

    def groups(self, text: str) -> None:
        (self.proc / "self/cgroup").write_text(text)

    def group(self, path: str, limit: str, used: int, cache: int = 0, *, old: bool = False) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used * MIB * 1024}\n")
        name = "total_inactive_file" if old else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\n{name} {cache * MIB * 1024}\n")


def mib(number: int) -> str:
    return str(number * MIB * 1024)
