# SPDX-License-Identifier: LGPL-2.1-only
"""What scripts/bench has measured, as a document and as a table."""

import datetime
import os
import platform
import statistics
import subprocess
import sys
import time

from weighing.tools import Failed

RUNS = int(os.environ.get("CKPT_BENCH_RUNS", 5))
WHO = {"ckpt": "ckpt", "limit": "limit", "goal": "goal", "criu": "CRIU", "dmtcp": "DMTCP"}
"""The columns: what the keys of a row's figures begin with. They end with the unit."""
UNITS = {"ms": "ms", "bytes": "bytes", "ratio": "", "us": "µs", "calls": ""}


def seconds(work):
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def milliseconds(work):
    return seconds(work) * 1e3


def in_turns(ways, runs=None):
    """What each of the ways measures, by turns; what one cannot do it is not asked again."""
    figures, failed = {name: [] for name in ways}, {}
    for _ in range(runs or RUNS):
        for name, way in ways.items():
            if name in failed:
                continue
            try:
                figures[name].append(way())
            except Failed as error:
                failed[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
    return figures, failed


class Rows:
    """The rows so far."""

    def __init__(self):
        self.rows = []

    def add(self, part, what, unit, figures, *, goal=None, limit_is=None, failed=None, **more):
        """A row of medians; `goal` is made of the limit's. Figures of others than ours and theirs are added as they are."""
        row = {"part": part, "what": what, "unit": unit}
        medians = {name: statistics.median(values) for name, values in figures.items() if values}
        row |= {f"{name.lower()}_{unit}": round(value, 4) for name, value in medians.items()}
        row |= {f"{name.lower()}_least_{unit}": round(min(values), 4) for name, values in figures.items() if len(values) > 1}
        if goal is not None and (not callable(goal) or "limit" in medians):
            row[f"goal_{unit}"] = round(goal(medians["limit"]) if callable(goal) else goal, 4)
        row |= {key: value for key, value in (("limit_is", limit_is), ("failed", failed)) if value}
        row |= more
        row["load"] = os.getloadavg()[0]
        self.rows.append(row)
        print(f"{part}, {what}: " + ", ".join(f"{name} {shown(value, unit)}" for name, value in medians.items()), file=sys.stderr)
        return medians


def shown(value, unit):
    if value is None:
        return "–"
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"
    text = f"{value:.3f}" if unit == "ratio" else f"{value:.0f}" if value >= 100 or unit == "calls" else f"{value:.1f}"
    return f"{text} {UNITS[unit]}".strip()


def document(rows, tools, begun):
    """All of it; units are in the names of keys."""
    def version(words):
        try:
            return subprocess.run(words, capture_output=True, text=True).stdout.splitlines()[0].strip()
        except (OSError, IndexError):
            return ""
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        huge = file.read().split("[")[1].split("]")[0]
    versions = {"ckpt": version([tools["ckpt"].binary, "--version"])}
    if "CRIU" in tools:
        versions["criu"] = version([tools["CRIU"].binary, "--version"]).replace("Version:", "CRIU")
    if "DMTCP" in tools:
        versions["dmtcp"] = version([tools["DMTCP"].binary("dmtcp_launch"), "--version"])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(), "huge_pages": huge, "versions": versions,
        "binary_bytes": os.path.getsize(tools["ckpt"].binary), "runs": RUNS,
        "load_at_begin": begun, "load_at_end": os.getloadavg()[0], "rows": rows,
    }


def joined(documents):
    """One of several, which measured other parts of the same ckpt on the same machine."""
    first, *others = documents
    same = ("cpu", "kernel", "memory_bytes", "binary_bytes", "runs")
    if any(other[key] != first[key] for other in others for key in same):
        raise ValueError(f"these documents differ in {', '.join(same)}, or in one of them")
    versions = {name: text for one in documents for name, text in one["versions"].items()}
    rows = [row for one in documents for row in one["rows"]]
    return first | {"versions": versions, "rows": rows, "load_at_end": others[-1]["load_at_end"] if others else first["load_at_end"]}


def table(all_of_it):
    """The document in Markdown."""
    theirs = [who for who in ("criu", "dmtcp") if who in all_of_it["versions"]]
    columns = ["ckpt", "limit", "goal", *theirs]
    lines = [
        f"{all_of_it['date'][:16].replace('T', ' ')} UTC, {all_of_it['cpu']}, {all_of_it['cores']} processors, "
        f"{all_of_it['memory_bytes'] / 2**30:.0f} GiB, Linux {all_of_it['kernel']}, huge pages: {all_of_it['huge_pages']}. "
        + ", ".join(all_of_it["versions"].values()) + f". Medians of {all_of_it['runs']} runs in turns; load average "
        f"{all_of_it['load_at_begin']:.1f} at the begin, {all_of_it['load_at_end']:.1f} at the end.", "",
        "| what | " + " | ".join(WHO[who] for who in columns) + " | the limit is |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for row in all_of_it["rows"]:
        unit, failed = row["unit"], row.get("failed", {})
        def cell(who):
            if WHO[who] in failed:
                return "fails"
            return shown(row.get(f"{who}_{unit}"), unit)
        cells = [cell(who) for who in columns]
        ours, goal = row.get(f"ckpt_{unit}"), row.get(f"goal_{unit}")
        if ours is not None and goal is not None and ours > goal:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {row['part']}: {row['what']} | " + " | ".join(cells) + f" | {row.get('limit_is', '')} |")
    return "\n".join([*lines, "", "Bold: beyond its goal."])
