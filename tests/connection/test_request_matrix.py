"""Requests in every way and from everywhere, while each two of the events meet that decide them.

A test run has as many of the combinations as it takes for each two values to meet; all of them are
run by `make pairs`.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

import tao
from tao.client.client import ClientConn
from tao.connection.connection import core_of
from tao.connection.correlation import InOrder
from tao.errors import ConnectionLost, RequestCancelled, RequestTimeout, TaoError
from tao.testing.fault_proxy import FaultProxy
from tests.asking import in_thread, known
from tests.connection.test_correlation import framed
from tests.ends import Number, Seen, Text
from tests.pairwise import pairwise
from tests.support import PATIENCE, together, wait_until

AT_ONCE = tao.Reconnect(initial=0.001, maximum=0.005)
EVENTS = ("reply", "cancel", "timeout", "close here", "close there", "cut")
PLACES = ("threads", "auto", "pool", "inline", "timer", "on_connect")


class Go(Number):
    """Has a handler ask."""

    message_number = 3


def reply_id(message: Any) -> str | None:
    return message.text[1:] if isinstance(message, Text) else None


# How replies are told apart, and whether a server may ask so.
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "envelope": ({}, True),
    "narrow ids": ({"codec": framed("u8")}, False),
    "reply_when": ({"codec": framed("u8", reply_when=lambda header, number: number == 1)}, True),
    "in order": ({"correlation": InOrder(lambda message: isinstance(message, Go))}, False),
    "messages": (
        {"correlation": tao.Correlate(request=lambda it: str(it.value), reply=reply_id)},
        True,
    ),
}


def possible(way: str, side: str, readers: str, place: str, one: str, other: str) -> bool:
    if side == "server" and not (WAYS[way][1] and place != "on_connect"):
        return False
    # One thread of the connection waits there, and cannot be told to cancel.
    return "cancel" not in (one, other) or place in ("threads", "timer")


MATRIX = [
    (way, side, readers, place, *events)
    for way, side, readers, place in itertools.product(
        WAYS, ("client", "server"), ("own", "shared"), PLACES
    )
    for events in itertools.combinations(EVENTS, 2)
    if possible(way, side, readers, place, *events)
]
CASES = MATRIX if int(os.environ.get("PAIRS", "1")) > 1 else pairwise(MATRIX)


class Case:
    """One connection, with requests on it, of which each has one fate.

    Args:
        way, side, readers, place: how, at which end, and from where they are made.
        events: what decides them.
    """

    def __init__(self, way: str, side: str, readers: Any, place: str, events: set[str]) -> None:
        self.place, self.events, self.in_order = place, events, way == "in order"
        self.tries = 0
        self.fates: dict[int, Any] = {}
        self.futures: dict[int, Future[Any]] = {}
        self.begun, self.executed, self.held = Seen(), Seen(), Seen()
        established = Seen()
        options: dict[str, Any] = {**WAYS[way][0], "readers": readers}
        self.server = tao.Server(
            registry=self.registry(), on_connect=established.add, workers=4, **options
        )
        self.proxy = FaultProxy(self.server.start(("127.0.0.1", 0)))
        self.reconnects = "cut" in events or self.in_order
        self.client = ClientConn(
            self.proxy.address,
            registry=self.registry(),
            reconnect=AT_ONCE if self.reconnects else False,
            on_connect=self.greet if place == "on_connect" else None,
            **options,
        )
        self.started = in_thread(self.client.start)
        conn = established.wait()[0]
        self.here, self.there = (self.client, conn) if side == "client" else (conn, self.client)
        self.asks_anew = side == "client" and self.reconnects
        if place != "on_connect":
            self.started()
            self.check_working(-1)

    def registry(self) -> tao.Registry:
        registry = known()
        registry.handler(Number)(self.execute)
        mode: Any = self.place if self.place in ("auto", "pool", "inline") else "auto"
        registry.handler(Go, dispatch=mode)(lambda ctx, conn: self.ask(conn, ctx.message.value))
        return registry

    def execute(self, ctx: Any, conn: Any) -> None:
        """Reply at once to what only tries the connection, and otherwise when the event comes."""
        self.executed.add(ctx.message.value)
        if ctx.message.value < 0:
            ctx.reply(Text(f"!{ctx.message.value}"))
        else:
            ctx.defer()
            self.held.add(ctx)

    def check_working(self, value: int) -> None:
        assert self.here.request(Number(value), timeout=PATIENCE).text == f"!{value}"

    def works_again(self) -> bool:
        """Whether the connection works; it may be about to be lost, and made again."""
        self.tries += 1
        try:
            self.check_working(-1 - self.tries)
        except ConnectionLost:
            assert self.asks_anew
            return False
        return True

    # -- asking

    @property
    def numbers(self) -> range:
        return range(3) if self.place == "threads" else range(1)

    def ask(self, conn: Any, number: int) -> None:
        """Ask, and note what comes of it."""
        self.begun.add(number)
        timeout = random.random() * 0.005 if "timeout" in self.events else PATIENCE
        try:
            if "cancel" in self.events:
                self.futures[number] = conn.request_async(Number(number), timeout)
            else:
                self.fates[number] = conn.request(Number(number), timeout).text
        except TaoError as error:
            self.fates[number] = error

    def greet(self, conn: Any) -> None:
        if 0 not in self.fates:
            self.ask(conn, 0)

    def begin(self) -> list[Any]:
        """Have requests be made, and wait until they are; return what waits for their threads."""
        threads = []
        if self.place == "threads":
            threads = [in_thread(lambda n=n: self.ask(self.here, n)) for n in self.numbers]
        elif self.place == "timer":
            self.here.run_after(0, lambda due, conn: self.ask(conn, 0))
        elif self.place != "on_connect":
            self.there.write(Go(0))
        (self.begun if "timeout" in self.events else self.held).wait(len(self.numbers))
        return threads

    @property
    def decided(self) -> bool:
        done = sum(future.done() for future in list(self.futures.values()))
        return len(self.fates) + done == len(self.numbers)

    # -- events

    def act(self, event: str) -> None:
        if event == "reply":
            wait_until(lambda: self.reply() or self.decided)
        elif event == "cancel":
            wait_until(lambda: self.cancel() or self.decided)
        elif event == "cut":
            self.proxy.reset()
        elif event != "timeout":
            (self.here if event == "close here" else self.there).close()

    def reply(self) -> None:
        for context in list(self.held.items):
            try:
                context.reply(Text(f"!{context.message.value}"))
            except (TaoError, RuntimeError):
                pass  # the connection is over, or it has a reply

    def cancel(self) -> None:
        for future in list(self.futures.values()):
            future.cancel()

    # -- outcomes

    def check(self) -> None:
        """Check that each fate is one that the events explain, and fits what was executed."""
        wait_until(lambda: self.decided)
        for number, future in self.futures.items():
            try:
                self.fates[number] = future.result().text
            except (TaoError, CancelledError) as error:
                self.fates[number] = error
        expected = {
            kind
            for event, kind in (
                *(("cancel", RequestCancelled), ("timeout", RequestTimeout)),
                *(("close here", ConnectionLost), ("close there", ConnectionLost)),
                ("cut", ConnectionLost),
            )
            if event in self.events
        }
        if self.in_order and self.events & {"cancel", "timeout"}:
            expected.add(ConnectionLost)  # as one that is given up ends the connection
        for number, fate in self.fates.items():
            if isinstance(fate, str):
                assert "reply" in self.events and fate == f"!{number}"
            else:
                assert type(fate) in expected, (number, fate)
        values = list(self.executed.items)
        assert len(values) == len(set(values)), "executed twice"
        unsent = {n for n, fate in self.fates.items() if not getattr(fate, "sent", True)}
        assert not unsent & set(values)

    def check_afterwards(self) -> None:
        """Check that the connection works, or has ended, and that no request is left."""
        over = self.events & {"close here", "close there", "cut"}
        if "close here" not in self.events and (self.asks_anew or not over):
            wait_until(self.works_again)
        elif self.place != "on_connect":
            assert self.here.wait_closed(PATIENCE)
            with pytest.raises(ConnectionLost) as caught:
                self.here.request(Number(-2), timeout=PATIENCE)
            assert not caught.value.sent
        requests = core_of(self.here).exchange.requests
        wait_until(lambda: not (requests.in_flight or requests.waiting))

    def close(self) -> None:
        self.client.close()
        self.server.stop()
        self.proxy.close()


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    way, side, readers, place, one, other = request.param
    made = Case(way, side, readers, place, {one, other})
    yield made
    made.close()


@pytest.mark.parametrize("case", CASES, ids="-".join, indirect=True)
def test_two_events_meet(case: Case) -> None:
    """Each request has one outcome, which one of the two explains; none is executed twice."""
    asked = case.begin()
    together(*[lambda event=event: case.act(event) for event in sorted(case.events)])
    for wait in asked:
        wait()
    case.check()
    if case.place == "on_connect":
        try:
            case.started()
        except TaoError:
            return  # it was closed meanwhile
    case.check_afterwards()
