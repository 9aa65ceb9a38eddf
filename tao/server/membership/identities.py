"""Which connection a peer has, by the identity that its login has proved.

Guarantees:

- Of several connections that claim an identity at once, one has it afterwards. With ``replace`` the
  others are closed; without, each but the first is refused.
- A connection that is closing has no claim any more. Of one that `forget` was called for nothing is
  left, if its ``closed`` was set before.

Any thread may call any method at any moment. The decision and the change take one turn, see
``runtime/combining.py``. What was decided is entered in a journal first, so that an exception at
any bytecode leaves it done or not begun. A connection that was replaced is closed after the turn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tao.errors import ConnectionClosed, IdentityTaken
from tao.runtime.combining import Combiner
from tao.server.membership.names import Member

__all__ = ["Claimant", "Identities"]


class Claimant(Member, Protocol):
    """What this asks of a connection."""

    @property
    def close_reason(self) -> str | None:
        """Why it is closed."""

    def close(self, reason: str) -> object:
        """Close it; does not wait for the end."""


ClaimantT = TypeVar("ClaimantT", bound=Claimant)


@dataclass
class _Claim(Generic[ClaimantT]):
    """A claim that has been decided on."""

    identity: str
    claimant: ClaimantT
    replaced: ClaimantT | None


class Identities(Generic[ClaimantT]):
    """The identities of the connections of one server."""

    __slots__ = ("_combiner", "_journal", "_names", "_owners", "_replaced", "_used")

    def __init__(self) -> None:
        # Changed by the thread that has the turn; read by any.
        self._owners: dict[str, ClaimantT] = {}
        self._names: dict[int, str] = {}  # the identities of connections, of replaced ones too
        # What is being changed: the number of a connection, and what it claims; None: nothing any
        # more.
        self._journal: tuple[int, _Claim[ClaimantT] | None] | None = None
        # Connections to be closed, and why: appended in the turn, removed by any thread.
        self._replaced: deque[tuple[ClaimantT, str]] = deque()
        self._used: bool = False  # whether anything was ever claimed; set before that
        self._combiner = Combiner(self._change, self._change, self._close_replaced)

    def claim(self, claimant: ClaimantT, identity: str, *, replace: bool) -> None:
        """Give an identity to a connection, in place of the one that it had.

        Raises:
            ConnectionClosed: the connection is closed.
            IdentityTaken: another connection has it, and ``replace`` is False.
            RuntimeError: the caller is a signal handler or finalizer that has interrupted another
                claim on its own thread, which cannot be decided before that goes on.
        """
        if self._combiner.interrupted_here:
            raise RuntimeError("an identity cannot be claimed in the midst of another claim")
        self._used = True
        try:
            self._combiner.run(self._claim, claimant, identity, replace)
            self._close_replaced()
        except BaseException:
            self._close_replaced()
            raise

    def forget(self, net_id: int) -> None:
        """Release the identity of a connection, which is closed."""
        # One that is first to claim, and has not set this yet, will find itself closed.
        if self._used:
            self._combiner.run(self._forget, net_id)

    def owner(self, identity: str) -> ClaimantT | None:
        """Return the connection that has an identity; it may be closing."""
        return self._owners.get(identity)

    def identity(self, net_id: int) -> str | None:
        """Return the identity that a connection has, or had before it was replaced."""
        return self._names.get(net_id)

    def held(self, net_id: int) -> str | None:
        """Return the identity that a connection has, and no other one by now."""
        identity = self._names.get(net_id)
        owner = None if identity is None else self._owners.get(identity)
        return identity if owner is not None and owner.net_id == net_id else None

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of a change."""
        return self._combiner.interrupted_here

    def after_fork(self) -> None:
        """In a child process: be empty, as all connections are the parent's."""
        self._combiner.after_fork()
        self._journal = None
        self._owners.clear()
        self._names.clear()
        self._replaced.clear()

    # -- in the turn

    def _claim(self, claimant: ClaimantT, identity: str, replace: bool) -> None:
        if claimant.closed:
            raise ConnectionClosed(claimant.close_reason or "closed")
        owner = self._owners.get(identity)
        if owner is not None and owner is not claimant and not owner.closed:
            if not replace:
                raise IdentityTaken(f"connection {owner.net_id} is {identity!r} already")
        else:
            owner = None
        self._journal = claimant.net_id, _Claim(identity, claimant, owner)
        self._change()

    def _forget(self, net_id: int) -> None:
        self._journal = net_id, None
        self._change()

    def _change(self) -> None:
        """Do what the journal says, or the rest of it."""
        if self._journal is None:
            return
        net_id, claim = self._journal
        before = self._names.get(net_id)
        if before is not None and (claim is None or before != claim.identity):
            owner = self._owners.get(before)
            if owner is not None and owner.net_id == net_id:
                self._owners.pop(before)
        if claim is None:
            self._names.pop(net_id, None)
        else:
            if claim.replaced is not None:
                self._replaced.append((claim.replaced, f"replaced by connection {net_id}"))
            self._owners[claim.identity] = claim.claimant
            self._names[net_id] = claim.identity
        self._journal = None

    # -- outside of the turn

    def _close_replaced(self) -> None:
        for entry in list(self._replaced):
            replaced, reason = entry
            replaced.close(reason)  # twice, if two threads are here: the first counts
            try:
                self._replaced.remove(entry)
            except ValueError:
                pass  # another thread has removed it
