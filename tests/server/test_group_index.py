"""The index of groups: what it promises to threads that change it at once, or are interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tao.server.membership.group_index import GroupIndex
from tao.server.membership.names import check_group_name
from tests.injection import opcodes
from tests.support import together

MODULES = ("tao.server.membership.group_index", "tao.runtime.combining")


class Peer:
    """What the index knows of a connection."""

    def __init__(self, net_id: int) -> None:
        self.net_id = net_id
        self.closed = False


def state(index: GroupIndex[Peer]) -> dict[str, set[int]]:
    """Return the numbers of all members by group; check that both directions agree."""
    groups = {name: {peer.net_id for peer in index.members(name)} for name in list(index._members)}
    assert all(groups.values()), "a group without members is left"
    assert index._changes == type(index._changes)()
    for net_id, names in index._names.items():
        assert set(names) == {name for name, members in groups.items() if net_id in members}
    assert set().union(*groups.values()) == set(index._names)
    return groups


def test_members_and_names() -> None:
    """Each side is found by the other, in the order of joining, and nothing is left at the end."""
    index, one, two = GroupIndex[Peer](), Peer(1), Peer(2)
    for peer, name in ((two, "a"), (one, "a"), (one, "b"), (one, "b")):
        index.join(peer, name)
    assert (index.members("a"), index.names(1), index.count("b")) == ([two, one], {"a", "b"}, 1)
    assert (index.has_room(1, "c", 2), index.has_room(1, "b", 2)) == (False, True)
    index.leave(1, "b")
    index.leave(3, "a")
    index.forget(2)
    assert state(index) == {"a": {1}} and len(index) == 1
    index.forget(1)
    assert state(index) == {}


def test_changes_from_many_threads() -> None:
    """After joins and leaves at once, each connection is where its own thread left it."""
    index, names = GroupIndex[Peer](), [f"group {number}" for number in range(5)]

    def wander(net_id: int) -> Callable[[], set[str]]:
        def run() -> set[str]:
            chance, peer, joined = random.Random(net_id), Peer(net_id), set[str]()
            for _ in range(300):
                name = chance.choice(names)
                (joined.discard if name in joined else joined.add)(name)
                (index.join(peer, name) if name in joined else index.leave(net_id, name))
                assert index.names(net_id) == joined
                assert (peer in index.members(name)) is (name in joined)
            return joined

        return run

    joined = together(*map(wander, range(8)))
    assert {net_id: index.names(net_id) for net_id in range(8)} == dict(enumerate(joined))
    state(index)


def test_joining_beside_the_end() -> None:
    """Of a connection that joins while it ends nothing is left."""
    index = GroupIndex[Peer]()
    index.join(Peer(0), "used")

    def end(peer: Peer) -> None:
        peer.closed = True
        index.forget(peer.net_id)

    for net_id in range(1, 200):
        peer = Peer(net_id)
        together(lambda peer=peer: index.join(peer, "a"), lambda peer=peer: end(peer))
    assert state(index) == {"used": {0}}


@pytest.mark.interrupted
@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda index: index.join(Peer(1), "c"), {*"abc"}),
        (lambda index: index.leave(1, "b"), {"a"}),
        (lambda index: index.forget(1), set()),
    ],
    ids=["join", "leave", "forget"],
)
def test_an_exception_at_any_bytecode(change: Callable[[Any], None], after: set[str]) -> None:
    """A change is made completely or not at all, and the next one can be made."""
    for moment in opcodes(*MODULES):
        index = GroupIndex[Peer]()
        for name in ("a", "b"):
            index.join(Peer(1), name)
        with moment.raising():
            change(index)
            assert index.names(1) == after
        assert index.names(1) in ({"a", "b"}, after), moment
        state(index)
        change(index)
        assert index.names(1) == after, moment


@pytest.mark.interrupted
def test_a_count_is_reported_although_that_was_interrupted() -> None:
    """At any bytecode: the next change of any group makes up for it."""
    for moment in opcodes(*MODULES):
        index, told = GroupIndex[Peer](), dict[str, int]()
        index.report_counts_to(told.__setitem__)
        with moment.raising():
            index.join(Peer(1), "a")
        index.join(Peer(2), "b")
        assert told.get("a", 0) == index.count("a") and told["b"] == 1, moment


def test_a_change_in_the_midst_of_another() -> None:
    """A signal handler's or finalizer's change is made when the interrupted call goes on."""
    for moment in opcodes(*MODULES):
        index, one, two = GroupIndex[Peer](), Peer(1), Peer(2)

        def meddle(index: GroupIndex[Peer] = index, two: Peer = two) -> None:
            index.join(two, "a")
            index.leave(1, "b")

        with moment.calling(meddle):
            index.join(one, "b")
            index.join(one, "a")
        if not moment.struck:
            break
        assert state(index)["a"] == {1, 2}, moment
    assert index.names(1) == {"a", "b"}


def test_counts_are_reported() -> None:
    """The last report of a group has its last count, however many threads change it."""
    index, told = GroupIndex[Peer](), dict[str, int]()
    index.report_counts_to(told.__setitem__)

    def stay(net_id: int) -> None:
        for _ in range(100):
            index.join(Peer(net_id), "a")
            index.leave(net_id, "a")
        index.join(Peer(net_id), "a")

    together(*(lambda net_id=net_id: stay(net_id) for net_id in range(4)))
    assert told == {"a": 4}
    index.forget(0)
    assert told == {"a": 3}


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        (7, TypeError, "must be a str, not 7"),
        (None, TypeError, "must be a str, not None"),
        (b"room", TypeError, "must be a str, not b'room'"),
        ("", ValueError, "must not be empty"),
        ("é" * 128, ValueError, "at most 255 bytes of UTF-8, not 256"),
        ("\udcff", ValueError, "must be valid text"),
    ],
)
def test_what_is_no_name(name: Any, error: type[Exception], why: str) -> None:
    """It is refused by an error that says why."""
    with pytest.raises(error, match=why):
        check_group_name(name)
    assert check_group_name("x" * 255) == "x" * 255
