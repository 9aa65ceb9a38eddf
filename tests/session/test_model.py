"""Both ends of a session over links that fail in any way, compared with lists."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tao.session import frames
from tao.session.agreement import Opening, Reception
from tao.session.frames import Hello, Welcome, read_ack, welcome_frame
from tao.session.session import Session
from tao.session.sessions import Sessions
from tao.wire.codec import Batch, TypeLengthValueCodec
from tao.wire.message import Registry
from tests.ends import Number, number

SIDES = st.sampled_from(["client", "server"])
# How many bytes go at once: messages have 16, and so have acknowledgements.
SIZES = st.sampled_from([1, 7, 16, 24, 40, 1000])
LIMIT = 200


class Link:
    """A transport: the bytes that are on their way, in each direction, until it is cut."""

    def __init__(self) -> None:
        self.to = {"client": bytearray(), "server": bytearray()}
        self.cut = False


class Side:
    """One end, with what a connection has besides: the frames that wait, a decoder, an inbox."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.link: Link | None = None
        self.written: list[int] = []
        self.waiting = b""  # frames that the send queue has
        self.inbox: list[int] = []
        self.handled: list[int] = []
        self.read = 0  # messages, all in all
        self.confirmed = 0  # how many of the peer's acknowledgements cover, by the model
        self.sent = 0  # how many messages some link has taken completely
        self.registry = Registry()
        self.registry.register(2, Number.deserialize)
        self.decoder: Any = None
        self.renew_decoder()

    def renew_decoder(self) -> None:
        self.decoder = TypeLengthValueCodec().decoder(self.registry)
        self.decoder.own = self.own

    def own(self, kind: int, value: bytes, batch: Batch) -> None:
        assert kind == frames.ACK
        self.session.incoming.skip(8 + len(value))
        position = read_ack(value)
        assert self.session.outgoing.acknowledge(position)
        assert position % 16 == 0  # the frames of the model are that long
        self.confirmed = max(self.confirmed, position // 16)

    def send(self, most: int) -> bytes:
        """Return what the link gets, at most so many bytes, as the stream of a connection does."""
        outgoing = self.session.outgoing
        sent, fresh = b"", False
        if outgoing.taken == outgoing.end and outgoing.has_room and self.waiting:
            piece = bytes(outgoing.offer(self.waiting))
            fresh = True
        else:
            piece = bytes(outgoing.next_piece())
        while len(sent) < most and piece:
            piece = piece[: most - len(sent)]
            outgoing.note_sent(len(piece))
            sent += piece
            piece = bytes(outgoing.next_piece())
        if fresh and outgoing.at < outgoing.end:
            outgoing.take_back(self.waiting, 0)
        self.waiting = self.waiting[outgoing.advance() :]
        self.sent = outgoing.taken // 16
        return sent

    def receive(self, data: bytes) -> None:
        batch: Batch = []
        incoming = self.session.incoming
        incoming.received += len(data)
        self.decoder.feed(data, batch)
        self.read += len(batch)
        incoming.note_decoded(self.read, self.decoder.pending)
        self.inbox += [message.value for _, message in batch]

    def handle(self, count: int) -> None:
        self.handled += self.inbox[:count]
        del self.inbox[:count]
        self.session.incoming.note_handled(len(self.handled))

    def attach(self, link: Link, received: int) -> None:
        assert self.session.outgoing.resume(received)
        self.session.outgoing.due = self.session.incoming.acknowledged
        self.link = link


class Attempt:
    """A client's attempt to resume, anywhere between its first byte and the last of the server."""

    def __init__(self, machine: Ends, index: int) -> None:
        session = machine.client.session
        session.attempt += 1
        hello = Hello(
            session.session_id,
            session.attempt,
            session.incoming.restart(),
            session.outgoing.acknowledged,
        )
        self.link = Link()
        self.opening = Opening(index, 0, index, hello, session.secret)
        self.reception = Reception(index, 0, bytes(16))
        self.over = False

    def step(self, machine: Ends, most: int) -> None:
        """Bring some bytes to the other end, in either direction."""
        client, server, to = self.opening, self.reception, self.link.to
        for side in (client, server):
            where = to["server" if side is client else "client"]
            where += side.output
            side.output = b""
        for end, name in ((server, "server"), (client, "client")):
            count = min(most, end.wanted, len(to[name]))
            if count and not end.over:
                data = bytes(to[name][:count])
                del to[name][:count]
                end.feed(data)
        if server.over and server.hello is not None and not self.over:
            self.over = True
            self.link.to["client"] += welcome_frame(machine.resume_at_server(self))
        if client.over and client.welcome is not None:
            machine.resume_at_client(self)


class Ends(RuleBasedStateMachine):
    """Drives both ends."""

    @initialize()
    def begin(self) -> None:
        self.table = Sessions(retain_bytes=LIMIT)
        session = self.table.new()
        mine = Session(session.session_id, session.secret, LIMIT)
        self.client, self.server = Side(mine), Side(session)
        self.attempts: list[Attempt] = []
        self.count = 0
        self.won = 0  # the number of the last attempt that has resumed the session
        link = Link()
        self.client.link = self.server.link = link

    def pair(self, name: str) -> tuple[Side, Side]:
        sides = self.client, self.server
        return sides if name == "client" else sides[::-1]

    @rule(name=SIDES, count=st.integers(1, 5))
    def write(self, name: str, count: int) -> None:
        side, _ = self.pair(name)
        for _ in range(count):
            value = len(side.written)
            side.written.append(value)
            side.waiting += number(value)

    @rule(name=SIDES, most=SIZES, least=SIZES)
    def carry(self, name: str, most: int, least: int) -> None:
        """What one end sends arrives at the other, or some of it."""
        self.send(name, most)
        self.receive("server" if name == "client" else "client", least)

    @rule(name=SIDES, most=SIZES)
    def send(self, name: str, most: int) -> None:
        """The kernel takes some bytes; those into a link that was cut are gone."""
        side, _ = self.pair(name)
        if side.link is not None:
            data = side.send(most)
            if not side.link.cut:
                side.link.to["server" if name == "client" else "client"] += data

    @rule(name=SIDES, most=SIZES)
    def receive(self, name: str, most: int) -> None:
        side, _ = self.pair(name)
        if side.link is not None:
            data = bytes(side.link.to[name][:most])
            del side.link.to[name][:most]
            if data:
                side.receive(data)

    @rule(name=SIDES, count=st.integers(1, 5))
    def handle(self, name: str, count: int) -> None:
        self.pair(name)[0].handle(count)

    @rule(name=SIDES)
    def acknowledge(self, name: str) -> None:
        side = self.pair(name)[0]
        position = side.session.outgoing.due = side.session.incoming.tell(len(side.handled))
        assert position <= 16 * len(side.handled)  # the frames of the model are that long

    @rule(keep=st.integers(0, 100))
    def cut(self, keep: int) -> None:
        """Only some of what is on its way arrives; neither end knows that yet."""
        for side in (self.client, self.server):
            if side.link is not None:
                side.link.cut = True
                for on_its_way in side.link.to.values():
                    del on_its_way[keep:]

    @rule(name=SIDES)
    def notice(self, name: str) -> None:
        """One end notices that its link was cut; the other may never do."""
        side, _ = self.pair(name)
        if side.link is not None and side.link.cut and not side.link.to[name]:
            self.lose_link(side)

    def lose_link(self, side: Side) -> None:
        side.link = None
        side.session.incoming.restart()
        side.renew_decoder()

    @precondition(lambda self: len(self.attempts) < 3)
    @rule()
    def dial(self) -> None:
        """The client begins an attempt; earlier ones may still be on their way."""
        if self.client.link is not None:
            self.lose_link(self.client)
        self.count += 1
        self.attempts.append(Attempt(self, self.count))

    @rule()
    def resume(self) -> None:
        """An attempt that succeeds, unless one of the others is faster at the server."""
        if len(self.attempts) < 3:
            self.dial()
            attempt = self.attempts[-1]
            while attempt in self.attempts:
                attempt.step(self, 1000)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), most=st.sampled_from([8, 48, 1000]))
    def step(self, data: st.DataObject, most: int) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        attempt.step(self, most)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def drop_attempt(self, data: st.DataObject) -> None:
        self.attempts.remove(data.draw(st.sampled_from(self.attempts)))

    def resume_at_server(self, attempt: Attempt) -> Welcome:
        server, reception, hello = self.server, attempt.reception, attempt.reception.hello
        assert hello is not None
        session = self.table.find(hello.session_id)
        assert session is server.session and reception.proves(session.secret)
        if not session.claim(hello.attempt):
            return Welcome(frames.REFUSED, text="another attempt was faster")
        assert hello.attempt > self.won
        self.won = hello.attempt
        assert session.can_resume(hello.received, hello.first)
        self.lose_link(server)
        server.attach(attempt.link, hello.received)
        return reception.resumed(session.secret, session.incoming.decoded, 60)

    def resume_at_client(self, attempt: Attempt) -> None:
        welcome = attempt.opening.welcome
        assert welcome is not None
        self.attempts.remove(attempt)
        current = self.client.session.attempt
        if welcome.kind == frames.RESUMED and attempt.reception.hello.attempt == current:  # type: ignore[union-attr]
            self.client.attach(attempt.link, welcome.received)

    @invariant()
    def once_and_in_order(self) -> None:
        if hasattr(self, "client"):
            for name in ("client", "server"):
                side, peer = self.pair(name)
                assert peer.handled == side.written[: len(peer.handled)]
                # What is uncertain lies between what is known to be handled and what was sent.
                uncertain = [
                    Number.deserialize(each.value).value for each in side.session.unacknowledged()
                ]
                assert uncertain == side.written[side.confirmed : side.sent]
                assert side.confirmed <= len(peer.handled) <= side.sent

    @invariant()
    def counted_right(self) -> None:
        """Each end knows which messages it has, to the byte; what it tells arrives."""
        if hasattr(self, "client"):
            for name in ("client", "server"):
                side, peer = self.pair(name)
                incoming, link = side.session.incoming, side.link
                assert incoming.decoded == 16 * side.read
                assert incoming.handled <= 16 * len(side.handled)
                if link is peer.link is not None and not link.cut:
                    all_there = side.session.outgoing.idle and not any(link.to.values())
                    assert not all_there or 16 * peer.confirmed == incoming.acknowledged

    def teardown(self) -> None:
        """With a last resume and a sound link, everything arrives."""
        if not hasattr(self, "client"):
            return
        self.attempts.clear()
        self.dial()
        last = self.attempts[0]
        while self.attempts:
            last.step(self, 1000)
        for _ in range(1000):
            for name in ("client", "server"):
                self.send(name, 1000)
                self.receive("server" if name == "client" else "client", 1000)
                self.handle(name, 1000)
                self.acknowledge(name)
            if all(
                not side.waiting and side.session.outgoing.idle
                for side in (self.client, self.server)
            ):
                break
        self.once_and_in_order()
        assert self.server.handled == self.client.written
        assert self.client.handled == self.server.written
        assert not self.client.session.unacknowledged() and not self.server.session.unacknowledged()


TestEnds = Ends.TestCase
TestEnds.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("seed", range(20))
def test_a_long_life(seed: int) -> None:
    """The same, in longer walks, chosen at random."""
    chance, ends = random.Random(seed), Ends()
    ends.begin()
    sizes = (1, 7, 16, 24, 40, 1000)
    for _ in range(400):
        name, size, other = chance.choice(("client", "server")), *chance.sample(sizes, 2)
        step: Any = chance.choice(
            (
                lambda name=name: ends.write(name, chance.randint(1, 5)),
                lambda name=name, size=size, other=other: ends.carry(name, size, other),
                lambda name=name, size=size: ends.receive(name, size),
                lambda name=name: ends.handle(name, chance.choice((0, 1, 1, 2, 9))),
                lambda name=name: ends.acknowledge(name),
                lambda other=other: ends.cut(other),
                lambda name=name: ends.notice(name),
                lambda: ends.resume() if chance.random() < 0.5 else None,
                lambda: ends.dial() if len(ends.attempts) < 3 else ends.attempts.pop(),
                lambda size=size: ends.attempts and chance.choice(ends.attempts).step(ends, size),
            )
        )
        step()
        ends.once_and_in_order()
        ends.counted_right()
    ends.teardown()
