"""``python -m tests.bench``: measure, print, and write the figures and their picture."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.chart import bar_chart
from tests.bench.cluster import cluster_rows
from tests.bench.contest import Contest
from tests.bench.growth import growth_chart, growth_rows
from tests.bench.load import Generator
from tests.bench.model import Outcome, Row
from tests.bench.processes import raise_descriptor_limit
from tests.bench.report import (
    heading_lines,
    machine,
    outcome_lines,
    summary_lines,
    write_json,
)
from tests.bench.rows import all_rows
from tests.bench.workloads import Settings


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything in under two minutes")
    parser.add_argument("--growth", action="store_true", help="follow growing loads instead")
    parser.add_argument("--cluster", action="store_true", help="more than one process instead")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick or --growth 3")
    parser.add_argument("--seconds", type=float, help="of measuring in each run")
    parser.add_argument("--only", metavar="ROW", action="append", help="a row, or how it begins")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="DIR")
    return parser.parse_args()


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """Return the rows that the command line asks for."""
    if options.growth or options.cluster:
        rows = growth_rows() if options.growth else cluster_rows()
    else:
        rows = all_rows(options.quick and not options.only)
    if not options.only:
        return rows
    chosen = [row for row in rows if any(row.name.startswith(name) for name in options.only)]
    if not chosen:
        sys.exit(f"no such row; there are: {', '.join(row.name for row in rows)}")
    return chosen


def make_settings(options: argparse.Namespace, folder: Path) -> Settings:
    """Decide how long and how often to measure."""
    short = options.quick or options.growth
    try:
        from tests.bench.certificate import make_certificate

        certificate = make_certificate(folder)
    except ImportError:
        certificate = None
        print("missing: cryptography is not installed, rows over TLS fail", flush=True)
    return Settings(
        generator=Generator.build(folder),
        rounds=options.rounds or (3 if short else 5),
        seconds=options.seconds or (0.25 if options.quick else 0.5 if short else 1.0),
        warmup=0.15 if options.quick else 0.3 if short else 0.5,
        fresh=not short,
        quick=options.quick,
        certificate=certificate,
    )


def show(lines: list[str]) -> None:
    """Print lines at once, for those who watch."""
    print("\n".join(lines), flush=True)


def write_files(options: argparse.Namespace, settings: Settings, outcomes: list[Outcome]) -> None:
    """Write the JSON and the picture into the chosen folder."""
    options.out.mkdir(parents=True, exist_ok=True)
    where, name = machine(), "bench"
    if options.growth or options.cluster:
        name = "growth" if options.growth else "cluster"
    caption = (
        f"{where['python']}, {where['cpus']} CPUs, {settings.rounds} rounds of "
        f"{settings.seconds:g} s; medians"
    )
    write_json(options.out / f"{name}.json", settings, outcomes)
    picture = growth_chart if options.growth else bar_chart
    (options.out / f"{name}.svg").write_text(picture(outcomes, caption))
    show(["", f"written: {options.out / name}.json and .svg"])


def main() -> int:
    """Run the suite; 1 means that something failed to run, not that a target was missed."""
    options, began = parse(), time.monotonic()
    rows, outcomes = chosen_rows(options), []
    if options.list:
        show([f"{row.name:<24} {row.title}" for row in rows])
        return 0
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended first
    with tempfile.TemporaryDirectory(prefix="tao-bench-") as folder:
        settings = make_settings(options, Path(folder))
        show(heading_lines(settings))
        try:
            for row in rows:
                outcomes.append(Contest(row, settings).run())
                show(outcome_lines(outcomes[-1]))
        except KeyboardInterrupt:
            show(["", f"interrupted after {len(outcomes)} of {len(rows)} rows"])
    show(summary_lines(outcomes))
    write_files(options, settings, outcomes)
    show([f"took {time.monotonic() - began:.0f} s"])
    failed = any(entry.problem for outcome in outcomes for entry in outcome.entries)
    return int(failed or len(outcomes) < len(rows))


if __name__ == "__main__":
    sys.exit(main())
