"""``tao bench``: measures throughput and latency of an echo server."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tao.cli.codecs import (
    CodecCounter,
    encode_raw,
    find_codec,
    parse_any_number,
    parse_header,
)
from tao.cli.common import DONE, WrongCall, client_tls, has_rich, parse_number, say, size_text
from tao.cli.load import Counter, Histogram, Load
from tao.cli.values import Raw
from tao.errors import BadData
from tao.transport.addresses import address_text
from tao.wire.codec import TypeLengthValueCodec

__all__ = ["run"]

# The most bytes in flight on one connection.
_MOST_UNDER_WAY = 64 * 1024 * 1024
_PERCENTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))
_BAR = 40
# Above this share of a CPU, the load generator itself may be the bottleneck.
_BUSY = 0.9


def run(options: argparse.Namespace) -> int:
    """Measure, print the result, and return the exit status."""
    tls = client_tls(options)
    value = bytes(index & 255 for index in range(options.size))
    frame, make_counter = _traffic(options, value)
    if options.window * len(frame) > _MOST_UNDER_WAY:
        raise WrongCall("--window times --size must not be more than 64 MiB")
    with Load(
        options.address, tls, options.server_name, frame, options.window, make_counter
    ) as load:
        with _progress(options) as tell:
            for _ in range(options.connections):
                load.connect()
            busy = time.process_time()
            seconds = load.run(options.duration, tell)
            busy = (time.process_time() - busy) / seconds
        result = _result(options, load, seconds, busy)
        load.finish()
    if options.json:
        say(json.dumps(result))
    else:
        _print(result, load.latencies)
    return DONE


def _traffic(
    options: argparse.Namespace, value: bytes
) -> tuple[bytes, Callable[[], Counter] | None]:
    """Return the frame to send, and what counts replies, or None for the default framing."""
    if options.codec is None:
        if options.header:
            raise WrongCall("--header needs --codec")
        try:
            options.number = parse_number(str(options.number))
        except argparse.ArgumentTypeError as error:
            raise WrongCall(f"argument --number: {error}") from None
        return TypeLengthValueCodec().encode(Raw(options.number, value)), None
    codec = find_codec(options.codec)
    options.number = parse_any_number(str(options.number))
    try:
        frame = encode_raw(codec, Raw(options.number, value), parse_header(options.header, codec))
    except (BadData, TypeError) as error:
        raise WrongCall(str(error)) from None
    return frame, partial(CodecCounter, codec)


def _result(options: argparse.Namespace, load: Load, seconds: float, busy: float) -> dict[str, Any]:
    latencies = load.latencies
    latency = {name: latencies.percentile(share) * 1e3 for share, name in _PERCENTILES}
    latency["max"] = latencies.longest * 1e3
    latency["mean"] = latencies.total / latencies.count * 1e3 if latencies.count else 0.0
    return {
        "address": address_text(options.address),
        "connections": options.connections,
        "window": options.window,
        "size": options.size,
        "number": options.number,
        "tls": load.tls_version,
        "seconds": seconds,
        "messages": latencies.count,
        "messages_per_second": latencies.count / seconds,
        "bytes_out_per_second": load.bytes_out / seconds,
        "bytes_in_per_second": load.bytes_in / seconds,
        "latency_ms": latency,
        "histogram_ms": [[end * 1e3, count] for end, count in latencies.bars()],
        "load_cpu": busy,
    }


def _print(result: dict[str, Any], latencies: Histogram) -> None:
    how = result["tls"] or "no TLS"
    say(
        f"{result['address']} ({how}): {result['connections']} connections, window "
        f"{result['window']}, {result['size']} bytes, {result['seconds']:.1f} s"
    )
    say(f"replies   {result['messages_per_second']:,.0f} per second, {result['messages']:,} total")
    out, back = (size_text(result[f"bytes_{way}_per_second"]) for way in ("out", "in"))
    say(f"bytes     {out}/s sent, {back}/s received")
    times = result["latency_ms"]
    names = [name for _, name in _PERCENTILES] + ["max"]
    say(f"latency   {'   '.join(f'{name} {_time(times[name])}' for name in names)}")
    say(f"load      {result['load_cpu']:.0%} of a CPU")
    if result["load_cpu"] > _BUSY:
        say("          so the load generator may be the bottleneck, not the server")
    most = max((count for _, count in latencies.bars()), default=0)
    for end, count in latencies.bars():
        bar = "#" * round(_BAR * count / most)
        say(f"  up to {_time(end * 1e3):>9} {count / latencies.count:7.2%} {bar}".rstrip())


def _time(milliseconds: float) -> str:
    if milliseconds < 1:
        return f"{milliseconds * 1e3:.0f} us"
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1e3:.2f} s"


# -- progress, on stderr, so that stdout has only the result


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[Callable[[float, int], object]]:
    """Yield a function to call with the seconds passed and the replies so far."""
    if options.json:
        yield lambda seconds, count: None
    elif sys.stderr.isatty() and has_rich():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("connecting", total=options.duration)
            yield lambda seconds, count: progress.update(
                task, completed=seconds, description=_so_far(seconds, count)
            )
    else:
        told = 0

        def tell(seconds: float, count: int) -> None:
            nonlocal told
            if int(seconds) > told:
                told = int(seconds)
                print(f"{told:4} s  {_so_far(seconds, count)}", file=sys.stderr, flush=True)

        yield tell


def _so_far(seconds: float, count: int) -> str:
    return f"{count / seconds:,.0f} replies per second"
