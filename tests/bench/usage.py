"""What processes have used."""

import psutil


def usage(names: dict[int, str]) -> dict[str, tuple[float, int]]:
    """(CPU seconds, resident bytes) by name, of processes named by pid; those of one name are added up."""
    found: dict[str, tuple[float, int]] = {}
    for pid, name in names.items():
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            cpu, rss = found.get(name, (0.0, 0))
            found[name] = (cpu + times.user + times.system, rss + process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return found
