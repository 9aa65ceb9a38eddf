"""The figures as text and as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import ssl
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.model import Entry, Outcome, Verdict
from tests.bench.workloads import Settings

ENOUGH_HEADROOM = 1.5  # the load generator should be this many times faster than the fastest server
DISTURBED = 0.1  # the share of CPU time of other programs above which a warning is printed
PACKAGES = ("uvloop", "gevent", "Twisted", "cryptography", "python-socketio", "channels_redis")


def number(value: float) -> str:
    """Format a figure with three or more significant digits."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def outcome_lines(outcome: Outcome) -> list[str]:
    """Return one row of the report."""
    row = outcome.row
    lines = ["", f"{row.title}  [{row.name}], {row.workload.unit}"]
    lines += [_entry_line(entry) for entry in outcome.entries]
    lines += _limit_lines(outcome)
    lines += [f"    {verdict_line(verdict)}" for verdict in outcome.verdicts()]
    if outcome.others >= DISTURBED:
        lines.append(f"    disturbed: others used {outcome.others:.0%} of the CPUs meanwhile")
    return lines


def _entry_line(entry: Entry) -> str:
    start = f"    {entry.label:<28}"
    if entry.missing:
        return f"{start}missing: {entry.missing} is not installed"
    if not entry.runs:
        return f"{start}failed: {entry.problem}"
    spread = f"({number(min(entry.values))} .. {number(max(entry.values))})"
    line = f"{start}{number(entry.median):>10}  {spread:<26}{_details(entry)}".rstrip()
    return f"{line}  then failed: {entry.problem}" if entry.problem else line


def _details(entry: Entry) -> str:
    words = []
    if (p50 := entry.detail("p50_us")) is not None:
        p99, p999 = entry.detail("p99_us") or 0.0, entry.detail("p999_us") or 0.0
        words.append(f"p50 {_time(p50)}, p99 {_time(p99)}, p99.9 {_time(p999)}")
    if (cpu := entry.detail("server_cpu_us")) is not None:
        words.append(f"{cpu:.1f} us of CPU each")
    if (threads := entry.detail("threads")) is not None:
        words.append(f"{threads:.0f} threads")
    if (cpu := entry.detail("sender_cpu_us")) is not None:
        others = (entry.detail(f"{who}_cpu_us") or 0.0 for who in ("redis", "listener"))
        each = [f"{used:.1f}" for used in (cpu, *others)]
        words.append(f"{' + '.join(each)} us of CPU each (sender, Redis, listener)")
    if lost := entry.detail("lost"):
        words.append(f"{lost:.1f} % lost")
    if (extra := entry.detail("extra_kb")) is not None:
        words.append(f"{extra:+.0f} KB")
    if (connections := entry.detail("disturber_connections")) is not None:
        sent, cpu = entry.detail("disturber_mb") or 0.0, entry.detail("disturber_cpu") or 0.0
        words.append(f"disturber: {connections:.1f} connections/s, {sent:.1f} MB/s, {cpu:.0%} CPU")
    return "; ".join(words)


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    return f"{microseconds / 1000:.1f} ms"


def _limit_lines(outcome: Outcome) -> list[str]:
    if outcome.limit is None:
        return []
    line, headroom = _entry_line(outcome.limit), outcome.headroom()
    if headroom is None:
        return [line]
    verdict = "enough" if headroom >= ENOUGH_HEADROOM else f"below {ENOUGH_HEADROOM:g}"
    return [f"{line}; {headroom:.1f} x the fastest: {verdict}"]


def verdict_line(verdict: Verdict) -> str:
    """Return one target, what was measured, and whether it holds."""
    if verdict.ratio is None:
        return f"[  ?  ] {verdict.text}: not measured"
    sign = {True: "[holds]", False: "[FAILS]", None: "[     ]"}[verdict.holds]
    spread = f"{min(verdict.ratios):.2f} .. {max(verdict.ratios):.2f}"
    return f"{sign} {verdict.text}: {verdict.ratio:.2f} ({spread})"


def summary_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return all targets, one line each, and missing or failed contestants."""
    lines = ["", "What must be reached:"]
    for outcome in outcomes:
        for verdict in outcome.verdicts():
            lines.append(f"    {outcome.row.name:<24} {verdict_line(verdict)}")
    entries = [(outcome.row.name, entry) for outcome in outcomes for entry in outcome.entries]
    missing = {entry.missing for _, entry in entries if entry.missing}
    lines += [f"missing: {name} is not installed" for name in sorted(missing)]
    for row, entry in entries:
        if entry.problem:
            lines.append(f"failed: {entry.label} in {row}: {entry.problem}")
    return lines


def machine() -> dict[str, Any]:
    """Describe the origin of the figures."""
    versions = {"tao": _tao_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "build": platform.python_build()[0],
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "openssl": ssl.OPENSSL_VERSION,
        "packages": versions,
    }


def _tao_version() -> str:
    try:
        return str(importlib.import_module("tao.version").__version__)
    except ImportError:
        return "not importable"


def heading_lines(settings: Settings) -> list[str]:
    """Return the warnings to print before the figures."""
    where = machine()
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    return [
        f"{where['python']}, Linux {where['kernel']}, {where['cpus']} CPUs",
        f"load average at the start {where['load_average']:.2f}",
        packages,
        f"{settings.rounds} rounds of {settings.seconds:g} s after {settings.warmup:g} s warm-up",
        "figures are medians (lowest .. highest)",
        f"load generator: {settings.generator.describe()}",
    ]


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "label": entry.label,
        "median": entry.median if entry.runs else None,
        "lowest": min(entry.values, default=None),
        "highest": max(entry.values, default=None),
        "missing": entry.missing,
        "problem": entry.problem,
        "runs": [{"value": run.value, **run.details} for run in entry.runs],
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    verdicts = [
        {**dataclasses.asdict(verdict), "ratio": verdict.ratio, "holds": verdict.holds}
        for verdict in outcome.verdicts()
    ]
    return {
        "name": outcome.row.name,
        "title": outcome.row.title,
        "unit": outcome.row.workload.unit,
        "higher_is_better": outcome.row.workload.higher_is_better,
        "contestants": [_entry_json(entry) for entry in outcome.entries],
        "limit": _entry_json(outcome.limit) if outcome.limit else None,
        "headroom": outcome.headroom(),
        "others_cpu_share": outcome.others,
        "targets": verdicts,
    }


def write_json(file: Path, settings: Settings, outcomes: Iterable[Outcome]) -> None:
    """Write everything measured, each single run included."""
    content = {
        "machine": machine(),
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "warmup": settings.warmup,
            "load_generator": settings.generator.describe(),
        },
        "rows": [_outcome_json(outcome) for outcome in outcomes],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")
