"""How much memory is left, by the kernel's files."""

from pathlib import Path

from sidecar.engine.memory import free_bytes


def files(folder: Path, limit: str | None) -> tuple[Path, Path]:
    meminfo = folder / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    if limit is not None:
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("1000\n")
    return meminfo, folder


def test_a_machine_has_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert free_bytes(*files(tmp_path, None)) == 8000000 * 1024
    assert free_bytes(*files(tmp_path, "max\n")) == 8000000 * 1024


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    assert free_bytes(*files(tmp_path, "5000\n")) == 4000
    assert free_bytes(*files(tmp_path, "500\n")) == 0


def test_without_the_kernels_file_a_fixed_amount_is_assumed(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "absent", tmp_path) == 8 << 30
