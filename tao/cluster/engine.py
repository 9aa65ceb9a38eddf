"""The interface between a server of a cluster and the engine that joins it with the others.

An *engine* carries publications between the *nodes* of a cluster; a node is one started server of
one process. It knows nothing of messages and connections: a publication is a target, bytes that the
codec has made, and whom to leave out. `ClusterLink` is the only user of an engine, and the only
`Receiver`.

What an engine guarantees:

- **Order.** All nodes, the publisher included, get the publications of a partition in the same
  order. So a publisher does not deliver to its own connections; it gets its publication back.
- **No silent loss.** Either `Engine.publish` raises, or every node that is up gets the publication
  once, or is told of a gap by `Receiver.gap`. An engine that may have carried a publication twice,
  because it tried again, drops the second.
- **Bounded.** What waits to be published is bounded in number and in bytes. `Engine.publish` raises
  `ClusterUnavailable` when there is no more room; it never waits for any, unless asked to confirm.
- **Reconnects automatically**, with the counts of its groups.

Threads: an engine has threads of its own. It calls `Receiver.deliver` and `Receiver.gap` of one
partition from one thread at a time, and holds no lock meanwhile. Any thread may call its methods.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

__all__ = [
    "EVERYONE",
    "Engine",
    "EngineFigures",
    "EngineState",
    "Publication",
    "Receiver",
    "Target",
    "taken_back",
]

ItemT = TypeVar("ItemT")

#: ``"new"``: not started. ``"up"``: publications are carried. ``"down"``: they wait until it is up
#: again. ``"closed"``: for good.
EngineState = Literal["new", "up", "down", "closed"]


class Target(NamedTuple):
    """Whom a publication is for.

    Attributes:
        kind: every connection, those of a group, or one connection.
        name: of the group, or the ``address_id`` of the connection: the node, ``:`` and a number.
    """

    kind: Literal["all", "group", "connection"]
    name: str = ""

    @property
    def text(self) -> str:
        """The target as one string, which `parse` reads."""
        return self.kind if self.kind == "all" else f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read what `text` has returned.

        Raises:
            ValueError: it is no target.
        """
        if text == "all":
            return EVERYONE
        kind, mark, name = text.partition(":")
        if mark and kind == "group":
            return cls("group", name)
        if mark and kind == "connection":
            return cls("connection", name)
        raise ValueError(f"{text!r} is not the target of a publication")


#: Every connection of every node.
EVERYONE = Target("all")


class Publication(NamedTuple):
    """What an engine carries.

    Attributes:
        target: whom it is for.
        frame: one whole message, encoded by the publisher; the receivers send these bytes.
        exclude: the ``address_id`` of each connection that does not get it.
    """

    target: Target
    frame: bytes
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineFigures:
    """The figures of an engine at one moment; those that count never fall.

    Attributes:
        published: publications of this node that the engine has accepted and passed on.
        delivered: publications, of any node, given to the receiver.
        gaps: how many times publications were missed.
        missing: how many publications that were, as far as it is known.
        reconnects: how many times the engine has come back.
        queue: publications of this node that wait to be passed on.
        lag: seconds from a publication to its delivery here, of the latest one.
    """

    published: int = 0
    delivered: int = 0
    gaps: int = 0
    missing: int = 0
    reconnects: int = 0
    queue: int = 0
    lag: float = 0.0


class Receiver(Protocol):
    """What an engine calls. Neither method waits, or raises."""

    def deliver(self, publication: Publication) -> None:
        """Send a publication to those connections of this node that it is for."""

    def gap(self, partition: int, missing: int | None) -> None:
        """Publications of a partition were missed: so many, or None if that is not known."""


class Engine(Protocol):
    """Carries publications between the nodes of a cluster. See the guarantees above.

    It is made for one node, is started once, and closed once.
    """

    @property
    def state(self) -> EngineState:
        """What it can do now."""

    @property
    def figures(self) -> EngineFigures:
        """The figures as they are now."""

    def start(self, node: str, receiver: Receiver) -> None:
        """Begin to connect and to deliver; return at once, whether that succeeds or not.

        Args:
            node: the name of this node, new for each start: no other has it or ever had it.
            receiver: gets all publications from now on.

        Raises:
            RuntimeError: no thread can be started.
        """

    def publish(self, publication: Publication, confirm: float | None = None) -> None:
        """Pass a publication on, or have it wait until the engine is up.

        Args:
            publication: for any node, also for this one.
            confirm: seconds to wait until the publication is certain to reach all nodes that are
                up; None: do not wait.

        Raises:
            ClusterUnavailable: too much waits already, or the engine is closed, and it was not
                published; or it was not confirmed in time, and may be published yet.
        """

    def set_count(self, group: str, count: int) -> None:
        """Tell the others how many connections of this node are in a group; 0 for none.

        It does not wait. An engine may pass on only the latest of several counts.
        """

    def count(self, group: str) -> int:
        """Return how many connections of all living nodes are in a group, as far as it is known.

        Those of this node are counted as `set_count` has last told. It does not wait.
        """

    def close(self, timeout: float) -> int:
        """Pass on what waits if that can be done in so many seconds, leave the cluster, and end.

        Closing twice is harmless.

        Returns:
            how many publications did not reach the cluster, as far as this call has found them;
            they are logged.
        """

    def abandon(self) -> None:
        """In the child of a fork: close the child's copies of descriptors; be closed."""


def taken_back(queue: deque[ItemT], item: ItemT) -> bool:
    """Take an item out of a queue that may have been emptied for good; return whether it was there.

    So an engine does not lose what was published just as it has ended.
    """
    try:
        queue.remove(item)
    except (ValueError, IndexError):  # it was taken out, and counted as left; just now maybe
        return False
    return True
