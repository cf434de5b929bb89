"""How much memory is free for what a server keeps: keys and values, mostly.

Reads the kernel's own files; a container's limit (cgroups, both versions) counts like the machine's.
"""

from __future__ import annotations

from pathlib import Path

import torch

_UNLIMITED = 2**60  # what version 1 says where there is no limit is a little below 2**63
_WHERE_UNKNOWN = 2 * 2**30  # elsewhere than on Linux


def kv_budget(device: torch.device) -> int:
    """Half of the memory that is free on ``device`` after the model has been loaded, in bytes.

    The other half is for pixels, activations and whatever else runs on the machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    free = free_memory() - mapped_weights()
    return max(free // 2, 2**20)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that new allocations may take without swapping or meeting a container's limit."""
    found = [_available(root), *_left_in_cgroups(root)]
    return min((value for value in found if value is not None), default=_WHERE_UNKNOWN)


def mapped_weights(maps: Path = Path("/proc/self/maps")) -> int:
    """Bytes of checkpoints that this process reads from mapped files. The kernel counts their pages as free,
    but a server whose weights are pushed out of memory crawls."""
    total = 0
    for line in _text(maps).splitlines():
        if line.rstrip().endswith(".safetensors"):
            begin, _, end = line.split()[0].partition("-")
            total += int(end, 16) - int(begin, 16)
    return total


def _available(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_cgroups(root: Path) -> list[int]:
    """What each limit on the way from this process's group to the root leaves."""
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, most, used = "sys/fs/cgroup", "memory.max", "memory.current"
            inactive = "inactive_file"
        elif "memory" in controllers.split(","):
            base, most, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            inactive = "total_inactive_file"
        else:
            continue
        top = root / base
        here = top / path.strip().lstrip("/")
        for group in (here, *here.parents):
            limit, usage = _number(group / most), _number(group / used)
            if limit is not None and usage is not None and limit < _UNLIMITED:
                left.append(max(limit - usage + _reclaimable(group, inactive), 0))
            if group == top:
                break
    return left


def _reclaimable(group: Path, name: str) -> int:
    """File pages that nobody has used lately, which the kernel gives back first."""
    for line in _text(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
