"""``python -m tests.chaos``: runs the mix for a given time, and prints the result."""

from __future__ import annotations

import argparse
import random
import sys

from tests.chaos import mix
from tests.chaos.figures import Holding, settled


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--clients", type=int, default=8, help="every second one speaks TLS")
    parser.add_argument("--sessions", action="store_true", help="so nothing may be lost")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.clients} clients, {options.seconds:g} s", flush=True)
    before = Holding.now()
    total, broken = mix.run(options.seconds, options.seed, options.clients, options.sessions)
    after = settled(before)
    for name, count in total.items():
        print(f"{name:12}{count:10}")
    print(f"before: {before}\nafter:  {after}")
    if after.threads > before.threads or after.descriptors > before.descriptors:
        broken.append("threads or descriptors are left behind")
    for text in broken:
        print(f"BROKEN: {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
