"""What a measurement says of the machine and of the process that made it."""

import os
import platform
import re
import resource
import sys
from pathlib import Path


def machine() -> str:
    """CPU and memory, in words."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores ({model[1] if model else platform.machine()}), {memory:.0f} GiB"


def peak_megabytes() -> float:
    """The peak resident size of this process; Linux' own count, since ``ru_maxrss`` begins with that of the parent."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
