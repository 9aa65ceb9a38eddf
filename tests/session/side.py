"""One end of a session, and the link to the other: without sockets, and by hand.

It is a session of `tao.session` with what a connection has besides: frames that wait, a decoder, an
inbox. Beside that stands what the model knows: lists of what was written, taken by a link,
acknowledged and handled. Both are compared by `Side.check`.
"""

from __future__ import annotations

from typing import Any

from tao.session import frames
from tao.session.frames import read_ack
from tao.session.moved import session_from, state_of
from tao.session.session import Session
from tao.wire.codec import Batch, TypeLengthValueCodec
from tao.wire.message import Registry
from tests.ends import Number, number

#: How many bytes one end keeps, and the size of a message. An acknowledgement has the same.
LIMIT, FRAME = 200, 16

_registry = Registry()
_registry.register(2, Number.deserialize)


def new_decoder() -> Any:
    return TypeLengthValueCodec().decoder(_registry)


class Link:
    """A transport: the bytes that are on their way, in each direction, until it is cut."""

    def __init__(self) -> None:
        self.to = {"client": bytearray(), "server": bytearray()}
        self.cut = False


class Side:
    """One end of one session."""

    def __init__(self, session: Session, link: Link, written: list[int]) -> None:
        self.session = session
        self.link: Link | None = link
        self.written = written
        self.waiting = b"".join(map(number, written))  # frames that the send queue has
        self.inbox: list[int] = []
        self.handled: list[int] = []
        self.told: list[int] | None = None  # what was uncertain when it was lost
        self.read = 0  # messages, all in all
        self.before = 0  # how many of them were handled in another process
        # By the model: how many messages the peer's acknowledgements cover, and how many some link
        # has taken completely, as what it was given shows.
        self.confirmed = 0
        self.sent = 0
        self.decoder: Any = None
        self.witness: Any = None
        self.renew_decoders()

    def renew_decoders(self) -> None:
        self.decoder, self.witness = new_decoder(), new_decoder()
        self.decoder.own = self.own
        self.witness.own = lambda kind, value, batch: None

    def own(self, kind: int, value: bytes, batch: Batch) -> None:
        assert kind == frames.ACK
        self.session.incoming.skip(8 + len(value))
        position = read_ack(value)
        assert self.session.outgoing.acknowledge(position)
        assert position % FRAME == 0
        self.confirmed = max(self.confirmed, position // FRAME)

    def write(self, value: int) -> None:
        self.written.append(value)
        self.waiting += number(value)

    def send(self, most: int, committed: int = 0) -> bytes:
        """Return what the link gets, at most so many bytes, as the stream of a connection does.

        Args:
            committed: how many more bytes it has to be given next, as TLS has encrypted them.
        """
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
            outgoing.take_back(self.waiting, min(committed, outgoing.end - outgoing.at))
        self.waiting = self.waiting[outgoing.advance() :]
        batch: Batch = []
        self.witness.feed(sent, batch)
        for _, message in batch:
            self.sent = max(self.sent, self.written.index(message.value) + 1)
        return sent

    def receive(self, data: bytes) -> None:
        batch: Batch = []
        incoming = self.session.incoming
        incoming.received += len(data)
        self.decoder.feed(data, batch)
        self.read += len(batch)
        incoming.note_decoded(self.read - self.before, self.decoder.pending)
        self.inbox += [message.value for _, message in batch]

    def handle(self, count: int) -> None:
        self.handled += self.inbox[:count]
        del self.inbox[:count]
        self.session.incoming.note_handled(self.handled_here)

    @property
    def handled_here(self) -> int:
        """How many messages were handled in this process."""
        return len(self.handled) - self.before

    def acknowledge(self) -> None:
        position = self.session.incoming.tell(self.handled_here)
        assert position <= FRAME * len(self.handled)
        self.session.outgoing.due = position

    def attach(self, link: Link, received: int) -> None:
        assert self.session.outgoing.resume(received)
        self.session.outgoing.due = self.session.incoming.acknowledged
        self.link = link

    def lose_link(self) -> None:
        self.link = None
        self.session.incoming.restart()
        self.renew_decoders()

    def end(self) -> None:
        """End the session here, as a lost one."""
        self.lose_link()
        self.told = self.uncertain()

    def uncertain(self) -> list[int]:
        """What the session says: what was sent and may not have been handled."""
        return [Number.deserialize(each.value).value for each in self.session.unacknowledged()]

    def move(self) -> Session:
        """Go on in another process; return the session there."""
        self.lose_link()
        self.handle(len(self.inbox))
        outgoing = self.session.outgoing
        outgoing.keep_rest()
        self.waiting = self.waiting[outgoing.advance() :]
        while self.waiting and outgoing.has_room:
            outgoing.keep(self.waiting[:FRAME])
            self.waiting = self.waiting[outgoing.advance() :]
        self.sent = max(self.sent, len(self.written) - len(self.waiting) // FRAME)
        self.session = session_from(state_of(self.session), LIMIT)
        self.before = self.read = len(self.handled)
        return self.session

    def check(self, peer: Side | None) -> None:
        """Compare it with what the model says; also if it or its peer has ended long ago."""
        handled = [] if peer is None else peer.handled
        assert handled == self.written[: len(handled)]
        assert self.confirmed <= len(handled) <= self.sent
        uncertain = self.uncertain() if self.told is None else self.told
        assert uncertain == self.written[self.confirmed : self.sent]
        incoming = self.session.incoming
        assert incoming.decoded == FRAME * self.read
        assert incoming.handled <= FRAME * len(self.handled)
        if peer is not None and self.link is peer.link is not None:
            told = self.session.outgoing.idle and not any(self.link.to.values())
            # What was told has arrived, if nothing was lost.
            assert not told or self.link.cut or FRAME * peer.confirmed == incoming.acknowledged
