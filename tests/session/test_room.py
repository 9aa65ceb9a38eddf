"""How much sessions keep until it is acknowledged: in messages, in bytes, and all together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tao.session.moved import session_from, state_of
from tao.session.outgoing import RETAIN, Outgoing
from tao.session.sessions import Sessions
from tao.session.shared_room import SharedRoom
from tests.ends import number

SIZE = len(number(0))


def send(outgoing: Outgoing, sent: int, count: int = 1) -> None:
    """Have a link take some messages, after so many."""
    if sent >= outgoing.next_mark:
        outgoing.mark(sent)
    piece = outgoing.offer(number(0) * count)
    outgoing.note_sent(len(piece))
    outgoing.advance()


# -- messages


def test_so_many_messages_are_kept_and_no_more() -> None:
    """Until some of them are acknowledged, however many were sent before the session."""
    outgoing, sent = Outgoing(10_000, 3), 7
    outgoing.begin(sent)
    while outgoing.has_room:
        send(outgoing, sent)
        sent += 1
        outgoing.mark(sent)
    assert sent == 7 + 3
    outgoing.acknowledge(2 * SIZE)
    for expected in (True, True, False):
        assert outgoing.has_room is expected
        send(outgoing, sent)
        sent += 1
        outgoing.mark(sent)


def test_nothing_kept_leaves_room_whatever_was_counted() -> None:
    """An acknowledgement may come before the mark that says how many messages it covers."""
    outgoing = Outgoing(10_000, 1)
    send(outgoing, 0)
    outgoing.acknowledge(SIZE)
    outgoing.mark(1)
    assert outgoing.has_room
    send(outgoing, 1)
    outgoing.mark(2)
    assert not outgoing.has_room
    outgoing.acknowledge(2 * SIZE)
    assert outgoing.has_room


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 400))), st.integers(1, 2000))
def test_messages_are_counted_closely(steps: list[tuple[int, int]], most: int) -> None:
    """To within one piece, of which the peer may have handled a part, and one part in 256."""
    outgoing, sent, handled = Outgoing(10**9, most), 0, 0
    near = 200 + max(1, most // 256)
    for count, more in steps:
        if sent >= outgoing.next_mark:
            outgoing.mark(sent)
        kept = sent - handled
        assert outgoing.has_room or kept + near >= most
        assert not outgoing.has_room or kept < most + near
        if outgoing.has_room:
            send(outgoing, sent, count)
            sent += count
        handled = min(sent, handled + more)
        outgoing.acknowledge(handled * SIZE)


def test_few_marks_are_made() -> None:
    """So many messages are counted with hundreds of them, not with one each."""
    outgoing = Outgoing(10**9)
    for sent in range(RETAIN):
        send(outgoing, sent)
    assert len(outgoing._marks) <= 256


# -- all together


class Waits:
    """Something that waits, and takes some bytes when it goes on."""

    def __init__(self, room: SharedRoom, takes: int = 0) -> None:
        self.room, self.takes, self.tries = room, takes, 0

    def go_on(self) -> None:
        self.tries += 1
        self.room.change(self.takes)


def test_half_belongs_to_all_and_half_is_divided() -> None:
    """A session below its share has room even if others have taken the rest."""
    sharing = [1, 2, 3, 4]
    room = SharedRoom(8000, sharing)
    assert room.has_room(3999)
    room.change(3999)
    assert room.has_room(3999)
    room.change(1)
    assert room.has_room(999) and not room.has_room(1000)
    sharing.pop()
    assert room.has_room(1333) and not room.has_room(1334)
    room.change(-1)
    assert room.has_room(5000) and room.kept == 3999


def test_those_that_wait_go_on_in_their_order_while_there_is_room() -> None:
    """The others wait on, until their shares grow."""
    room = SharedRoom(200, [1])
    room.change(100)
    first, second, third, gone = (Waits(room, takes) for takes in (0, 60, 0, 0))
    for each in (first, gone, second, third):
        room.wait(each)
    room.leave(gone)
    room.make_way()
    assert not first.tries
    room.change(-50)
    room.make_way()
    assert [each.tries for each in (first, second, third, gone)] == [1, 1, 0, 0]
    room.make_way(everyone=True)
    assert [each.tries for each in (first, second, third, gone)] == [1, 1, 1, 0]


def test_those_that_wait_are_told_although_one_raises() -> None:
    """An exception may come at any moment; the rest are told all the same."""
    room = SharedRoom(200, [1])

    class Raises(Waits):
        def go_on(self) -> None:
            super().go_on()
            if self.tries == 1:
                raise KeyboardInterrupt

    first, second = Raises(room), Waits(room)
    room.wait(first)
    room.wait(second)
    try:
        room.make_way()
    except KeyboardInterrupt:
        pass
    assert (first.tries, second.tries) == (2, 1)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("saaer"), st.integers(1, 50))),
    st.integers(1, 10**6),
)
def test_all_that_is_kept_is_counted(steps: list[tuple[int, str, int]], size: int) -> None:
    """To within one step of each session; nothing is left of those that have ended."""
    table = Sessions(total_bytes=size, retain_bytes=10**9)
    sessions = {index: table.new() for index in range(4)}
    sent, handled = [0] * 4, [0] * 4
    for index, step, count in steps:
        outgoing = sessions[index].outgoing
        if step == "s":
            send(outgoing, sent[index], count)
            sent[index] += count
        elif step == "a":
            handled[index] = min(sent[index], handled[index] + count)
            outgoing.acknowledge(handled[index] * SIZE)
        elif step == "r":
            table.forget(sessions[index])
            state = state_of(sessions[index])
            sessions[index] = session_from(state, 10**9, shared=table.room)
            table.adopt(sessions[index])
        else:
            table.forget(sessions[index])
            sessions[index], sent[index], handled[index] = table.new(), 0, 0
        kept = SIZE * (sum(sent) - sum(handled))
        uncounted = sum(each.outgoing._step - 1 for each in sessions.values())
        assert kept - uncounted <= table.retained_bytes <= kept
    for session in sessions.values():
        table.forget(session)
        table.forget(session)
    assert table.retained_bytes == 0 == len(table)


def test_a_session_counts_in_parts_of_its_share() -> None:
    """However many there are, what is not counted yet is a small part of the room."""
    for total in (1, 1000, 10**6, 10**9):
        for count in (0, 1, 7, 1000):
            room = SharedRoom(total, range(count))
            assert 1 <= room.step <= 65536
            assert room.step == 1 or room.step * count <= total // 32


def test_a_session_that_moves_takes_its_messages_along() -> None:
    """They count in the bounds of the new process."""
    session = Sessions().new()
    for sent in range(4):
        send(session.outgoing, sent)
    table = Sessions(retain=5, total_bytes=100)
    outgoing = table.restored(state_of(session)).outgoing
    outgoing.begin(100)
    assert table.retained_bytes == 4 * SIZE
    send(outgoing, 100)
    outgoing.mark(101)
    assert not outgoing.has_room
    outgoing.acknowledge(4 * SIZE)
    assert outgoing.has_room and table.retained_bytes <= SIZE
