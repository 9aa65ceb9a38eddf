"""Breaks after long turns: for how long, and when there are none."""

from __future__ import annotations

from tao.connection.shared_reading.breaks import Breaks


class Member:
    """A connection that notes whether it has a break, and the turns that took long."""

    def __init__(self, sends_more: bool = True) -> None:
        self.rests, self.sends_more = False, sends_more
        self.long: list[float] = []

    def took(self, seconds: float) -> bool:
        self.long.append(seconds)
        return self.sends_more

    def take_break(self) -> None:
        self.rests = True

    def end_break(self) -> None:
        self.rests = False


def test_the_others_are_served_twelve_times_as_long() -> None:
    """A break lasts until short turns have taken twelve times as long as the turn before it."""
    breaks, flood = Breaks(), Member()
    breaks.begin([(flood, 0.001)], contended=True)
    assert flood.rests and breaks and flood.long == [0.001]
    breaks.shared += 0.0119
    breaks.waited(0.0, quiet=False)
    assert flood.rests
    breaks.shared += 0.0002
    breaks.waited(0.0, quiet=False)
    assert not flood.rests and not breaks


def test_waiting_for_the_others_counts_as_theirs() -> None:
    """A break ends in time even if the others do little."""
    breaks, flood = Breaks(), Member()
    breaks.begin([(flood, 0.001)], contended=True)
    for _ in range(13):
        assert flood.rests
        breaks.waited(0.00095, quiet=False)
    assert not flood.rests


def test_a_break_ends_when_nothing_comes() -> None:
    """Where there are no others any more, there is no further break."""
    breaks, flood = Breaks(), Member()
    breaks.begin([(flood, 0.001)], contended=True)
    breaks.waited(0.001, quiet=True)
    assert not flood.rests
    breaks.begin([(flood, 0.001)], contended=False)
    assert not flood.rests and not breaks


def test_those_that_are_alone_have_no_break() -> None:
    """Peers that all send without a pause share the time among them."""
    breaks, floods = Breaks(), [Member(), Member()]
    breaks.begin([(each, 0.001) for each in floods], contended=False)
    assert not any(each.rests for each in floods)


def test_one_of_which_nothing_waits_has_no_break() -> None:
    """What it sends next is not delayed: its turn was long for another reason."""
    breaks, member = Breaks(), Member(sends_more=False)
    breaks.begin([(member, 0.001)], contended=True)
    assert not member.rests and not breaks and member.long == [0.001]


def test_others_are_remembered_over_a_break() -> None:
    """A turn that comes before the others do again is followed by a break, too."""
    breaks, flood = Breaks(), Member()
    breaks.begin([(flood, 0.001)], contended=True)
    breaks.waited(0.0095, quiet=False)
    breaks.begin([(flood, 0.001)], contended=False)
    assert flood.rests


def test_of_a_very_long_turn_not_all_counts() -> None:
    """A thread that had to wait for a processor does not make its connection pay for that."""
    breaks, member = Breaks(), Member()
    breaks.begin([(member, 1.0)], contended=True)
    breaks.waited(0.0241, quiet=False)
    assert not member.rests
