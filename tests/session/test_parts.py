"""The parts of a session by themselves: what is kept, counted, and said."""

from __future__ import annotations

import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.errors import BadData
from tao.session import frames, retained
from tao.session.agreement import Opening, Reception
from tao.session.frames import (
    NEW,
    REFUSED,
    RESUMED,
    Hello,
    Welcome,
    hello_frame,
    read_hello,
    read_welcome,
    welcome_frame,
)
from tao.session.incoming import Incoming
from tao.session.moved import session_from, state_of
from tao.session.outgoing import Outgoing
from tao.session.retained import Retained
from tao.session.session import Session, messages_in
from tao.session.sessions import Sessions
from tao.wire.capabilities import ANSWER, ASK, REQUESTS, SESSIONS, capability_frame
from tests.ends import Seen, frame, number, text
from tests.injection import opcodes

NONCE = bytes(range(16))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1), st.floats(0, 1))), st.integers(1, 30)
)
def test_what_is_kept_is_found_by_its_position(
    steps: list[tuple[int, float, float]], chunk: int
) -> None:
    """However it is appended and dropped, in small pieces or large ones."""
    before, (retained._SMALL, retained._CHUNK) = (
        (retained._SMALL, retained._CHUNK),
        (chunk // 3, chunk),
    )
    try:
        kept, everything = Retained(), b""
        for size, drop, look in steps:
            piece = bytes((len(everything) + i) % 251 for i in range(size))
            everything += piece
            kept.append(piece)
            kept.drop(kept.start + round(drop * (kept.end - kept.start)))
            assert kept.end == len(everything)
            at = kept.start + round(look * (kept.end - kept.start))
            found = bytes(kept.piece(at))
            assert everything[at:].startswith(found) and bool(found) == (at < kept.end)
            assert kept.bytes_between(at, kept.end) == everything[at:]
    finally:
        retained._SMALL, retained._CHUNK = before


def test_many_short_messages_are_kept_as_their_bytes() -> None:
    """Not as an object each."""
    kept = Retained()
    for _ in range(100_000):
        kept.append(b"12345678")
    assert len(kept._chunks) < 60
    kept.drop(kept.end)
    assert len(kept._chunks) == 1 and kept.start == kept.end


def sent_by(outgoing: Outgoing, most: int) -> bytes:
    """Return what a link takes, in one piece."""
    piece = bytes(outgoing.next_piece())[:most]
    outgoing.note_sent(len(piece))
    return piece


def test_nothing_interrupts_a_frame_or_an_acknowledgement() -> None:
    """An acknowledgement leaves between frames, whatever the link takes at once."""
    outgoing = Outgoing(1000)
    outgoing.offer(text("hello"))
    outgoing.due = 7
    sent = b"".join(sent_by(outgoing, 3) for _ in range(20))
    assert sent == text("hello") + frame(frames.ACK, struct.pack("<Q", 7))
    outgoing.due = 8
    outgoing.offer(text("you"))
    sent = b"".join(sent_by(outgoing, 3) for _ in range(20))
    assert sent == frame(frames.ACK, struct.pack("<Q", 8)) + text("you")
    assert outgoing.idle and outgoing.advance() == len(text("hello")) + len(text("you"))


def test_an_acknowledgement_is_not_continued_on_another_link() -> None:
    """What is left of it is dropped; positions do not count it."""
    outgoing = Outgoing(1000)
    outgoing.due = 7
    sent_by(outgoing, 3)
    assert not outgoing.idle and outgoing.resume(0) and outgoing.idle and outgoing.end == 0


def test_only_what_is_kept_can_be_resumed() -> None:
    """Neither what was acknowledged, nor what was never sent."""
    outgoing = Outgoing(1000)
    outgoing.offer(number(1) + number(2))
    assert outgoing.acknowledge(16) and not outgoing.acknowledge(33)
    assert not outgoing.resume(15) and not outgoing.resume(33)
    assert outgoing.resume(16) and bytes(outgoing.next_piece()) == number(2)


def test_its_limit_is_exceeded_by_one_piece_at_most() -> None:
    """So a frame that is longer than the limit can be sent."""
    outgoing = Outgoing(10)
    assert outgoing.has_room
    outgoing.offer(bytes(1000))
    assert not outgoing.has_room
    outgoing.acknowledge(991)
    assert outgoing.has_room


def test_the_end_is_no_message() -> None:
    """It counts in the stream, and is not among what may not have been handled."""
    session = Session(bytes(16), bytes(32), 1000)
    outgoing = session.outgoing
    outgoing.offer(text("a") + frame(0, bytes(8)) + text("b"))
    outgoing.offer_end()
    outgoing.offer_end()
    assert sent_by(outgoing, 1000).endswith(frames.END_FRAME)
    assert not outgoing.next_piece() and outgoing.advance()
    assert [each.value for each in session.unacknowledged()] == [b"a", b"b"]


def test_what_is_incomplete_is_no_message() -> None:
    """The rest of a frame was never sent, so the peer cannot have handled it."""
    assert [each.value for each in messages_in(text("a") + text("bcd")[:-1])] == [b"a"]


def test_what_was_handled_is_acknowledged_and_nothing_else() -> None:
    """Up to the last boundary before which all is handled."""
    incoming = Incoming()
    incoming.received = 100
    incoming.note_decoded(3, 10)
    incoming.received += 60
    incoming.skip(16)
    incoming.note_decoded(5, 4)
    assert incoming.decoded == 140
    incoming.note_handled(4)
    assert (incoming.handled, incoming.tell(4)) == (90, 90)
    assert incoming.has_to_tell and incoming.tell(5) == 140 and not incoming.has_to_tell
    assert incoming.restart() == 140 and incoming.received == 156


def test_replies_count_with_the_messages_before_them() -> None:
    """They are no messages for a handler, but bytes of the stream."""
    incoming = Incoming()
    incoming.begin(2, 0)
    for messages, received in ((3, 50), (3, 80)):
        incoming.received = received
        incoming.note_decoded(messages, 0)
    incoming.note_handled(0)
    assert incoming.handled == 0
    incoming.note_handled(1)
    assert incoming.handled == 80


def test_much_is_acknowledged_soon() -> None:
    """Many messages with what is sent next, many bytes at once; less has time."""
    incoming = Incoming()
    incoming.received = 256 * 1024 - 1
    assert not incoming.note_decoded(256, 0) and not incoming.wants_to_tell(255)
    incoming.received += 1
    assert incoming.note_decoded(257, 0) and incoming.wants_to_tell(256)
    assert incoming.tell(257) == 256 * 1024 and not incoming.wants_to_tell(257)
    incoming.received += 1
    assert not incoming.note_decoded(258, 0)


# -- what they say


def test_frames_are_laid_out_as_documented() -> None:
    """Number, length, and the fields in their order."""
    hello = Hello(NONCE, 3, 5, 7, b"p" * 32)
    value = b"\1\2\0\0\3\0\0\0" + NONCE + struct.pack("<QQ", 5, 7) + b"p" * 32
    assert hello_frame(hello) == frame(-(2**31) + 6, value)
    assert read_hello(value) == hello
    for new in (Hello(), Hello(wish=NONCE[::-1])):
        assert read_hello(hello_frame(new)[8:]) == new
    welcome = Welcome(REFUSED, 1.5, NONCE, 9, b"s" * 32, "no")
    value = b"\1\3\0\0" + struct.pack("<I", 1500) + NONCE + struct.pack("<Q", 9) + b"s" * 32 + b"no"
    assert welcome_frame(welcome) == frame(-(2**31) + 7, value)
    assert read_welcome(value) == welcome
    assert frames.challenge_frame(NONCE) == frame(-(2**31) + 5, NONCE)
    assert frames.ack_frame(9) == frame(-(2**31) + 8, struct.pack("<Q", 9))
    assert frame(-(2**31) + 9) == frames.END_FRAME


@pytest.mark.parametrize(
    ("read", "made"),
    [
        (read_hello, hello_frame(Hello())),
        (read_welcome, welcome_frame(Welcome(NEW))),
        (frames.read_ack, frames.ack_frame(1)),
    ],
)
def test_what_is_malformed_is_refused(read: Any, made: bytes) -> None:
    """Another size, version or kind."""
    value = made[8:]
    for wrong in (b"", value[:-1], b"\2" + value[1:] + b"", value[:1] + b"\x09" + value[2:]):
        if len(wrong) != 8:
            with pytest.raises(BadData):
                read(wrong)


def talk(opening: Opening, reception: Reception, answer: Any, most: int) -> None:
    """Bring what both say to each other, in pieces of at most so many bytes."""
    up = down = b""
    for _ in range(1000):
        up, opening.output = up + opening.output, b""
        down, reception.output = down + reception.output, b""
        count = min(most, reception.wanted)
        if not reception.over:
            reception.feed(up[:count])
            up = up[count:]
            if reception.hello is not None:
                down += welcome_frame(answer(reception))
        count = min(most, opening.wanted)
        if not opening.over:
            opening.feed(down[:count])
            down = down[count:]
        if opening.over and reception.over:
            assert not down
            return


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_both_agree_on_a_new_session(most: int) -> None:
    """In four steps, of any number of pieces."""
    opening, reception = Opening(1, REQUESTS, 2, Hello()), Reception(3, REQUESTS, NONCE)
    welcome = Welcome(NEW, 60, b"i" * 16, 0, b"s" * 32)
    talk(opening, reception, lambda _: welcome, most)
    assert opening.welcome == welcome and reception.hello == Hello()
    assert opening.agreed and reception.agreed and not opening.refusal
    assert opening.told == reception.told == REQUESTS | SESSIONS


@pytest.mark.parametrize("most", [1, 1000])
def test_a_session_is_resumed_by_those_who_know_its_secret(most: int) -> None:
    """Both prove it."""
    secret, hello = b"s" * 32, Hello(b"i" * 16, 1, 100, 50)
    opening, reception = Opening(1, REQUESTS, 2, hello, secret), Reception(3, REQUESTS, NONCE)
    talk(opening, reception, lambda end: end.resumed(secret, 70, 60), most)
    assert reception.proves(secret) and not reception.proves(b"t" * 32)
    assert opening.welcome is not None
    assert (opening.welcome.kind, opening.welcome.received) == (RESUMED, 70)


def test_a_server_that_does_not_know_the_secret_is_not_believed() -> None:
    """Nor is one that has a new session for a client that has one."""
    for wrong in (lambda end: end.resumed(b"t" * 32, 70, 60), lambda _: Welcome(NEW)):
        opening = Opening(1, REQUESTS, 2, Hello(b"i" * 16, 1), b"s" * 32)
        with pytest.raises(BadData):
            talk(opening, Reception(3, REQUESTS, NONCE), wrong, 1000)


def test_a_refusal_says_why() -> None:
    """Whatever was wanted."""
    opening = Opening(1, REQUESTS, 2, Hello(b"i" * 16, 1), b"s" * 32)
    talk(opening, Reception(3, REQUESTS, NONCE), lambda _: Welcome(REFUSED, text="gone"), 1000)
    assert opening.refusal == "gone"


@pytest.mark.parametrize(
    "first",
    [
        text("greetings"),
        frame(0, bytes(8)),
        frame(0, bytes(32)),
        frame(7),
        capability_frame(1, ANSWER, SESSIONS, 99),
        capability_frame(1, ASK, SESSIONS, 2),
    ],
)
def test_a_server_without_sessions_is_noticed_and_loses_no_byte(first: bytes) -> None:
    """Whatever it says first belongs to the stream."""
    opening = Opening(1, REQUESTS, 2, Hello())
    data = first
    while not opening.over:
        count = min(opening.wanted, len(data))
        opening.feed(data[:count])
        data = data[count:]
    assert opening.early + data == first and not opening.agreed and opening.welcome is None


def test_an_older_tao_answers_without_sessions() -> None:
    """Its answer is no message of the stream."""
    opening = Opening(1, REQUESTS, 2, Hello())
    opening.feed(capability_frame(1, ANSWER, REQUESTS, 2)[:8])
    opening.feed(capability_frame(1, ANSWER, REQUESTS, 2)[8:])
    assert opening.over and not opening.early and not opening.agreed
    assert opening.told == REQUESTS


def test_silence_ends_it_without_a_session() -> None:
    """And what has come of a frame is given back."""
    opening = Opening(1, REQUESTS, 2, Hello())
    opening.feed(b"\1\0\0")
    opening.give_up()
    assert opening.over and opening.early == b"\1\0\0"


@pytest.mark.parametrize("later", [b"", text("I have waited for too long")])
@pytest.mark.parametrize("asks", [False, True])
def test_a_client_without_a_session_is_noticed(asks: bool, later: bytes) -> None:
    """One that asks for nothing, and one that has given up after it has asked."""
    question = capability_frame(1, ASK, SESSIONS if asks else REQUESTS, 2)
    reception, data = Reception(3, REQUESTS, NONCE), question + later
    while not reception.over and data:
        count = reception.wanted
        reception.feed(data[:count])
        data = data[count:]
    if later or not asks:
        assert reception.early + data == (later if asks else question + later)
    else:
        assert reception.agreed and not reception.over


def test_a_server_that_has_agreed_may_say_nothing_else() -> None:
    """A client does not guess then."""
    opening = Opening(1, REQUESTS, 2, Hello())
    answer = capability_frame(1, ANSWER, SESSIONS, 2)
    opening.feed(answer[:8])
    opening.feed(answer[8:])
    with pytest.raises(BadData, match="instead"):
        opening.feed(text("")[:8])


# -- the table


def test_sessions_are_found_until_they_are_forgotten() -> None:
    """By their ids, which differ."""
    table = Sessions()
    one, other = table.new(), table.new("somebody")
    assert one.session_id != other.session_id and one.secret != other.secret
    assert table.find(one.session_id) is one and other.subject == "somebody"
    table.await_client(one, "host")
    assert (len(table), table.lingering) == (2, 1)
    table.forget(one)
    assert table.find(one.session_id) is None and table.await_client(one, "host") == [one]
    assert (len(table), table.lingering) == (1, 0)


def test_of_what_was_given_for_a_wish_the_last_asked_for_stays() -> None:
    """In whichever order they come, until it is forgotten, and for one subject only."""
    table = Sessions()
    others = [table.new("somebody"), table.new("else", b"wish", 1)]
    assert [table.grant(each) for each in others] == [[], []]
    first, third, second, fourth = (table.new("somebody", b"wish", n) for n in (1, 3, 2, 4))
    assert table.grant(first) == []
    assert table.grant(third) == [first]
    assert table.grant(second) == [second]
    assert len(table) == 4 and table.find(third.session_id) is third
    table.forget(third)
    assert table.grant(fourth) == []
    assert table.find(others[1].session_id) is others[1]


def test_of_threads_that_grant_a_wish_at_once_one_wins() -> None:
    """The one that was asked for last; each other is told to one of them, once."""
    for _ in range(200):
        grant_together(4)


def grant_together(count: int) -> None:
    """Have threads grant one session each, for the same wish, and look at what came of it."""
    table, outdated, together = Sessions(), Seen(), threading.Barrier(count)

    def grant(session: Session) -> None:
        together.wait()
        for each in table.grant(session):
            outdated.add(each.asked)

    sessions = [table.new(None, b"wish", asked) for asked in range(count)]
    threads = [threading.Thread(target=grant, args=(each,)) for each in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outdated.items) == list(range(count - 1))
    assert len(table) == 1 and table.find(sessions[-1].session_id)


def test_too_many_lost_ones_end_those_lost_first() -> None:
    """In all, and of one host."""
    table = Sessions(maximum=3, per_host=2)
    sessions = [table.new() for _ in range(6)]
    assert [table.await_client(each, "a") for each in sessions[:3]] == [[], [], [sessions[0]]]
    table.forget(sessions[0])
    assert table.await_client(sessions[3], "b") == []
    assert table.await_client(sessions[4], "c") == [sessions[1]]
    table.resumed(sessions[2])
    table.forget(sessions[1])
    assert table.await_client(sessions[5], "d") == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"linger": 0}, ValueError),
        ({"linger": float("nan")}, ValueError),
        ({"linger": 10**400}, ValueError),
        ({"linger": "1"}, TypeError),
        ({"maximum": 0}, ValueError),
        ({"per_host": 1.5}, TypeError),
        ({"retain_bytes": True}, TypeError),
        ({"save": 1, "load": print}, TypeError),
        ({"save": bytes}, ValueError),
        ({"load": print}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """The text names them."""
    with pytest.raises(error, match=next(iter(options))):
        Sessions(**options)


def test_a_session_goes_on_from_its_state() -> None:
    """Both halves stand where they stood, and what is not acknowledged is sent again."""
    session = Sessions(linger=7).new("alice", b"w" * 16, 2)
    session.attempt, session.resumes = 3, 4
    session.incoming.received = 100
    session.incoming.note_decoded(5, 10)
    session.incoming.note_handled(5)
    for each in (text("a"), text("b" * 2000), text("c")):
        session.outgoing.keep(each)
    session.outgoing.advance()
    session.outgoing.acknowledge(len(text("a")))
    state = state_of(session)
    later = session_from(state, 1000)
    assert state_of(later) == state
    assert (later.subject, later.linger, later.attempt, later.resumes) == ("alice", 7, 3, 4)
    assert later.can_resume(later.outgoing.end, 90) and not later.can_resume(0, 90)
    assert later.incoming.restart() == 90
    assert later.outgoing.idle and not later.outgoing.has_room
    assert later.outgoing.resume(len(text("a")))
    assert later.outgoing.kept() == text("b" * 2000) + text("c")
    assert later.outgoing.next_piece()


def test_fitting_ends() -> None:
    """A session can be resumed if each end keeps what the other one has not."""
    session = Session(bytes(16), bytes(32), 1000)
    session.outgoing.offer(bytes(20))
    session.outgoing.acknowledge(10)
    session.incoming.received = 8
    session.incoming.note_decoded(1, 0)
    assert session.can_resume(10, 8) and session.can_resume(20, 0)
    assert not session.can_resume(9, 0)
    assert not session.can_resume(21, 0)
    assert not session.can_resume(10, 9)
    assert session.label == "0000000000000000"


@pytest.mark.interrupted
def test_what_is_handled_is_acknowledged_although_noting_it_was_interrupted() -> None:
    """At any bytecode of either side: the next look makes up for it."""
    for moment in opcodes("tao.session.incoming"):
        incoming = Incoming()
        incoming.received = 100
        incoming.note_decoded(1, 0)
        with moment.raising():
            incoming.note_handled(1)
        incoming.note_handled(1)
        assert incoming.handled == 100, moment
