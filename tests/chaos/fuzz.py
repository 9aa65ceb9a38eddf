"""``python -m tests.chaos.fuzz``: malformed streams for the decoder and a server.

The mutations are seeded. If atheris is installed, it guides those for the decoder by the coverage
that they reach.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path

from tao.wire.codec import TypeLengthValueDecoder
from tests.chaos.figures import Holding, settled
from tests.chaos.nasty import STREAMS, mutate
from tests.chaos.protocols import PROTOCOLS, check_protocol
from tests.chaos.target import Target, check_decoder

CORPUS = Path(__file__).parent / "corpus"
# One of this many streams is also sent to a server.
SERVED = 20
# One of this many streams is in another protocol.
PRESETS = 0.5
WAYS = ("plain", "plain", "tls", "raw")
# How much memory may grow after the first tenth of the time, in KiB.
GROWTH = 16 * 1024


def save(data: bytes, seed: int, error: BaseException) -> str:
    """Save a stream that caused an error, for the test that replays them; return a report."""
    path = CORPUS / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.write_bytes(data)
    return f"{path.name} (cut with seed {seed}): {type(error).__name__}: {error}"


def run(seconds: float, seed: int) -> tuple[int, int, list[str]]:
    """Feed streams for some time; return how many, how many to servers, and the findings."""
    chance = random.Random(seed)
    streams = [*STREAMS.values(), *(path.read_bytes() for path in sorted(CORPUS.glob("*.bin")))]
    findings: list[str] = []
    fed = served = 0
    began = time.monotonic()
    warm: Holding | None = None
    target = Target("shared" if seed % 2 else "own")
    while (elapsed := time.monotonic() - began) < seconds:
        if warm is None and elapsed > seconds / 10:
            target.wait_idle()
            warm = Holding.now()
        cuts = chance.randrange(2**32)
        fed += 1
        if chance.random() < PRESETS:
            name = chance.choice(sorted(PROTOCOLS))
            data = mutate(chance, [PROTOCOLS[name][1]])
            try:
                check_protocol(name, data, cuts)
            except Exception as error:
                findings.append(f"{name}: {save(data, cuts, error)}")
                if len(findings) >= 10:
                    break
            continue
        data = mutate(chance, streams)
        try:
            check_decoder(data, cuts)
            if fed % SERVED == 0:
                served += 1
                target.check(data, cuts, chance.choice(WAYS))
        except Exception as error:
            findings.append(save(data, cuts, error))
            if len(findings) >= 10:
                break
    target.wait_idle()
    if warm is not None:
        now = settled(warm)
        print(f"after a tenth: {warm}\nat the end:    {now}")
        if now.threads > warm.threads or now.memory - warm.memory > GROWTH:
            findings.append("threads or memory grow")
    target.close()
    return fed, served, findings


def steer(seconds: float, seed: int) -> None:
    """Let atheris search for streams that break the decoder; it ends the process itself."""
    import atheris  # type: ignore[import-not-found]

    TypeLengthValueDecoder.feed = atheris.instrument_func(TypeLengthValueDecoder.feed)

    def one(data: bytes) -> None:
        try:
            check_decoder(data, len(data))
        except Exception as error:
            print(save(data, len(data), error))
            raise

    # It has its own directory, and only reads the streams that are saved here.
    place = Path(tempfile.mkdtemp(prefix="tao-fuzz-"))
    for name, data in STREAMS.items():
        (place / name).write_bytes(data[:5000])
    limits = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-artifact_prefix={place}/"]
    arguments = [sys.argv[0], *limits, str(place), str(CORPUS)]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    steered = importlib.util.find_spec("atheris") is not None
    share = options.seconds / 2 if steered else options.seconds
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    before = Holding.now()
    fed, served, findings = run(share, options.seed)
    after = settled(before)
    print(f"{fed} streams, {served} of them to servers\nbefore: {before}\nafter:  {after}")
    if after.threads > before.threads or after.descriptors > before.descriptors:
        findings.append("threads or descriptors are left behind")
    for text in findings:
        print(f"BROKEN: {text}")
    if steered and not findings:
        steer(share, options.seed)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
