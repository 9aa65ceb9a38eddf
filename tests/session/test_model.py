"""Both ends of sessions over links that fail in any way, compared with lists; see ``side.py``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tao.session import frames
from tests.session.world import ATTEMPTS, Skew, World

SIDES = st.sampled_from(["client", "server"])
# How many bytes go at once: messages have 16, and so have acknowledgements.
SIZES = (1, 7, 16, 24, 40, 1000)
#: How much more is tried with ``make sessions``.
MORE = 10 if "SESSION_MESSAGES" in os.environ else 1


# -- what another version says, or what was tampered with

KINDS = ("hello", "welcome", "size of hello", "size of welcome")
# Of a HELLO: version, kind, what is reserved, attempt, position. A WELCOME begins like that.
PLACES = (0, 1, 2, 3, 4, 24)


def changing(place: int) -> Skew:
    """Return what changes one byte."""
    return lambda value: value[:place] + bytes([value[place] ^ 3]) + value[place + 1 :]


def extending(size: int) -> Skew:
    """Return what appends bytes, or takes some away."""
    return lambda value: value + bytes(size) if size > 0 else value[:size]


def skews_of(kind: str, place: int, size: int) -> dict[int, Skew]:
    """Return what happens to the frames of an attempt."""
    if kind == "hello":
        return {frames.HELLO: changing(place)}
    if kind == "welcome":
        return {frames.WELCOME: changing(place % 4)}
    return {frames.HELLO if kind == "size of hello" else frames.WELCOME: extending(size)}


class Ends(RuleBasedStateMachine):
    """Drives both ends."""

    @initialize(agreed=st.booleans())
    def begin(self, agreed: bool) -> None:
        self.world = World()
        if agreed:
            self.world.connect()

    @rule(name=SIDES, count=st.integers(1, 5))
    def write(self, name: str, count: int) -> None:
        for _ in range(count):
            self.world.write(name)

    @rule(name=SIDES, most=st.sampled_from(SIZES), least=st.sampled_from(SIZES))
    def carry(self, name: str, most: int, least: int) -> None:
        """What one end sends arrives at the other, or some of it."""
        self.world.send(name, most)
        self.world.receive("server" if name == "client" else "client", least)

    @rule(name=SIDES, most=st.sampled_from(SIZES), committed=st.sampled_from((0, 0, 1, 20, 1000)))
    def send(self, name: str, most: int, committed: int) -> None:
        self.world.send(name, most, committed)

    @rule(name=SIDES, most=st.sampled_from(SIZES))
    def receive(self, name: str, most: int) -> None:
        self.world.receive(name, most)

    @rule(name=SIDES, count=st.integers(1, 5))
    def handle(self, name: str, count: int) -> None:
        if side := self.world.side(name):
            side.handle(count)

    @rule(name=SIDES)
    def acknowledge(self, name: str) -> None:
        if side := self.world.side(name):
            side.acknowledge()

    @rule(keep=st.integers(0, 100))
    def cut(self, keep: int) -> None:
        self.world.cut(keep)

    @rule(name=SIDES)
    def notice(self, name: str) -> None:
        self.world.notice(name)

    # -- attempts to connect

    @precondition(lambda self: len(self.world.attempts) < ATTEMPTS)
    @rule()
    def dial(self) -> None:
        """The client begins an attempt; earlier ones may still be on their way."""
        self.world.dial()

    @precondition(lambda self: len(self.world.attempts) < ATTEMPTS)
    @rule()
    def connect(self) -> None:
        """An attempt that succeeds, unless one of the others is faster at the server."""
        self.world.connect()

    @precondition(lambda self: self.world.attempts)
    @rule(data=st.data(), most=st.sampled_from([8, 48, 1000]))
    def step(self, data: st.DataObject, most: int) -> None:
        self.world.step(data.draw(st.sampled_from(self.world.attempts)), most)

    @precondition(lambda self: self.world.attempts)
    @rule(data=st.data())
    def drop_attempt(self, data: st.DataObject) -> None:
        self.world.drop(data.draw(st.sampled_from(self.world.attempts)))

    @precondition(lambda self: self.world.said)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """A connection that was begun before arrives once more."""
        self.world.replay(data.draw(st.sampled_from(self.world.said)))

    @rule(kind=st.sampled_from(KINDS), place=st.sampled_from(PLACES), size=st.integers(-3, 3))
    def connect_skewed(self, kind: str, place: int, size: int) -> None:
        """An attempt of another version, or one that was tampered with."""
        self.world.connect(skews_of(kind, place, size))

    # -- the end of a session, and its moves

    @rule()
    def client_gives_up(self) -> None:
        if self.world.client is not None and self.world.client.link is None:
            self.world.lose_client()

    @rule()
    def server_gives_up(self) -> None:
        self.world.expire()

    @rule(name=SIDES)
    def refuse(self, name: str) -> None:
        """The ``on_resume`` of one end refuses, as soon as a session is resumed."""
        self.world.refuses.add(name)

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule()
    def move(self) -> None:
        self.world.move()

    @invariant()
    def once_and_in_order(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestEnds = Ends.TestCase
TestEnds.settings = settings(
    max_examples=100 * MORE,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def step_at_random(world: World, chance: random.Random, calm: float) -> None:
    """Take one step.

    Args:
        calm: how often it is none that may end a session.
    """
    name, other = chance.sample(("client", "server"), 2)
    size, least = chance.sample(SIZES, 2)
    side = world.side(name)
    usual: list[Callable[[], Any]] = [
        lambda: [world.write(name) for _ in range(chance.randint(1, 5))],
        lambda: (world.send(name, size), world.receive(other, least)),
        lambda: world.send(name, size, chance.choice((0, 1, 1000))),
        lambda: world.receive(name, size),
        lambda: side and side.handle(chance.choice((0, 1, 1, 2, 9))),
        lambda: side and side.acknowledge(),
        lambda: world.cut(least),
        lambda: world.notice(name),
        lambda: chance.random() < 0.5 and world.connect(),
        lambda: (
            world.dial()
            if len(world.attempts) < ATTEMPTS
            else world.drop(chance.choice(world.attempts))
        ),
        lambda: world.attempts and world.step(chance.choice(world.attempts), size),
        lambda: world.said and world.replay(chance.choice(world.said)),
    ]
    rare: list[Callable[[], Any]] = [
        lambda: world.client and not world.client.link and world.lose_client(),
        world.expire,
        lambda: world.refuses.add(name),
        world.restart,
        world.move,
        lambda: world.connect(
            skews_of(chance.choice(KINDS), chance.choice(PLACES), chance.randint(-3, 3))
        ),
    ]
    chance.choice(usual if chance.random() < calm else rare)()


@pytest.mark.parametrize("calm", [1.0, 0.99, 0.9])
@pytest.mark.parametrize("seed", range(10 * MORE))
def test_a_long_life(seed: int, calm: float) -> None:
    """The same, in longer walks."""
    chance, world = random.Random(f"{seed} {calm}"), World()
    world.connect()
    for _ in range(400):
        step_at_random(world, chance, calm)
        world.check()
    world.settle()
