"""Sessions under load, with all kinds of options, over connections that are cut at random bytes."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao.testing.fault_proxy import Faults
from tests.ends import Number, Seen
from tests.session_pairs import Both
from tests.support import PATIENCE, wait_until
from tests.tls_pairs import SERVER

pytestmark = pytest.mark.usefixtures("patient")

#: How many messages go each way; more with ``make sessions``.
COUNT = int(os.environ.get("SESSION_MESSAGES", "10000"))

READERS = {"own": {}, "shared": {"readers": "shared"}}
DISPATCH = {mode: {"dispatch": mode} for mode in ("auto", "pool", "inline")}
LINES = {"plain": {}, "TLS": {"tls": SERVER}}
HANDLERS = {"quick": {}, "slow": {"before": lambda value: doze(value)}}
QUEUES = {
    "long queue": {},
    "short queue": {"queue_size": 4, "queue_bytes": 100},
    "WouldBlock": {"queue_size": 16},
    "drop_oldest": {"queue_size": 64, "slow_consumer": "drop_oldest"},
    "drop_newest": {"queue_size": 64, "slow_consumer": "drop_newest"},
}
KINDS: tuple[dict[str, dict[str, Any]], ...] = (READERS, DISPATCH, LINES, HANDLERS, QUEUES)
# So many are written at once where a full queue drops some.
_BURST = 100


def doze(value: int) -> None:
    """Be slow now and then, and sometimes so slow that another thread takes over."""
    if value % 100 == 0:
        time.sleep(0.05 if value % 2000 == 0 else 0.003)


def pairwise() -> Iterator[tuple[str, ...]]:
    """Return mixes in which each two options of different kinds meet."""

    def met(mix: tuple[str, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(mix), 2))

    every = list(itertools.product(*KINDS))
    missing = set().union(*map(met, every))
    while missing:
        best = max(every, key=lambda mix: len(missing & met(mix)))
        missing -= met(best)
        yield best


def cutting(seed: str) -> Callable[[int], tuple[Faults, Faults]]:
    """Return a plan that ends each connection somewhere, many while they begin.

    Some pass more than 16 KB, as nothing of a TLS record arrives unless all of it does. None passes
    more than a fifth of what 10 000 messages take, so there are at least four resumes until all
    of them are handled.
    """
    chance = random.Random(seed)

    def ending(index: int) -> Faults:
        most = 300 if index > 1 and chance.random() < 0.3 else 32_000
        kind = chance.choice(["cut_after", "reset_after"])
        return Faults(**{kind: chance.randint(200 if index == 1 else 1, most)})

    return lambda index: (ending(index), ending(index))


# -- writing as many as there is room for


def write_patiently(conn: Any) -> int:
    """Wait for room; return how often there was none at once."""
    for value in range(COUNT):
        conn.write(Number(value), timeout=PATIENCE)
    return 0


def write_again(conn: Any) -> int:
    """Write again what was refused."""
    refused = 0
    for value in range(COUNT):
        try:
            conn.write(Number(value))
        except tao.WouldBlock:
            refused += 1
            conn.write(Number(value), timeout=PATIENCE)
    return refused


def write_in_bursts(conn: Any) -> int:
    """Write more than there is room for, again and again; the rest is dropped."""
    for value in range(COUNT):
        conn.write(Number(value))
        if value % _BURST == _BURST - 1:
            wait_until(lambda: not conn.send_queue_length, 10 * PATIENCE)
    return 0


def exchange(both: Both, write: Callable[[Any], int]) -> int:
    """Write from both ends, and cut connections until all is handled.

    Returns:
        How many writes were refused at first.
    """
    both.client.start(keep_trying=True)
    wait_until(lambda: both.server.connections)
    refused = Seen()
    writer = threading.Thread(target=lambda: refused.add(write(both.conn)), name="test-writer")
    writer.start()
    refused.add(write(both.client))
    writer.join()
    wait_handled(both.at_server, both.client)
    wait_handled(both.at_client, both.server)
    return sum(refused.wait(2))


def wait_handled(seen: Seen, sender: Any) -> list[int]:
    """Wait until what was not dropped is handled."""
    return seen.wait(COUNT - sender.snapshot().dropped, 10 * PATIENCE)


def settle(both: Both) -> None:
    """Have the last connection, which would be cut as well, be replaced by a sound one."""
    both.proxy.plan, before = None, both.client.reconnects
    both.proxy.reset()
    wait_until(lambda: both.client.reconnects > before and both.client.connected)
    for each in (both.client, both.conn):
        wait_until(lambda each=each: each.session.unacknowledged == 0)  # type: ignore[misc]


def check_handled(seen: Seen, sender: Any, queue: str) -> None:
    """Check that what was written was handled once, in order, except for what was dropped."""
    dropped, handled = sender.snapshot().dropped, wait_handled(seen, sender)
    if queue.startswith("drop"):
        assert all(one < other for one, other in itertools.pairwise(handled))
        kept = 0 if queue == "drop_newest" else COUNT - 1
        assert kept in handled and len(handled) == COUNT - dropped
    else:
        assert dropped == 0 and handled == list(range(COUNT))


@pytest.mark.parametrize("mix", list(pairwise()), ids=", ".join)
def test_all_is_handled_once_and_in_order(mix: tuple[str, ...]) -> None:
    """While the connection is cut, also in the midst of resuming; policies drop what waits."""
    options: dict[str, Any] = {}
    for kind, name in zip(KINDS, mix, strict=True):
        options |= kind[name]
    queue = mix[-1]
    write = {"WouldBlock": write_again}.get(queue, write_patiently)
    both = Both(**options)
    both.proxy.plan = cutting(str(mix))
    try:
        refused = exchange(both, write_in_bursts if queue.startswith("drop") else write)
        settle(both)
        check_handled(both.at_server, both.client, queue)
        check_handled(both.at_client, both.server, queue)
        assert both.client.session.resumes > (0 if queue.startswith("drop") else 3)  # type: ignore[union-attr]
        assert queue == "WouldBlock" or not refused
        assert both.events.items.count("connect") == both.client_events.items.count("connect") == 1
    finally:
        both.proxy.plan = None
        both.close()
    assert both.events.items[-1] == both.client_events.items[-1] == "close"
    assert not [each for each in both.events.items + both.client_events.items if "lost" in each]
