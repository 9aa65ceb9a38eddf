"""The beginning of a transport: the two ends agree on a session, a new one or one to resume.

::

    client                                     server
      a question of capabilities  ------------>
                                  <------------  the answer to it, CHALLENGE
      HELLO                       ------------>
                                  <------------  WELCOME

The question and its answer are the heartbeats of ``wire/capabilities.py``. So a peer that knows no
sessions sees nothing but a longer heartbeat, and so does one that does not ask for a session.

Both machines say how many bytes they want next, and must be given no more. So nothing that follows
is ever taken from the stream. What a peer without a session has sent meanwhile is not lost either:
`Agreement.early`.
"""

from __future__ import annotations

import hmac
import struct

from tao.errors import BadData
from tao.session.frames import (
    CHALLENGE,
    HELLO,
    LONGEST,
    NEW,
    NONCE_SIZE,
    REFUSED,
    RESUMED,
    WELCOME,
    Hello,
    Welcome,
    answer_proof,
    challenge_frame,
    hello_frame,
    hello_proof,
    read_hello,
    read_welcome,
)
from tao.wire.capabilities import (
    ANSWER,
    ASK,
    OFFERS_SESSIONS,
    SESSIONS,
    SIZE,
    capability_frame,
)
from tao.wire.capabilities import read as read_capabilities
from tao.wire.numbers import HEARTBEAT

__all__ = ["Agreement", "Opening", "Reception"]

_HEADER = struct.Struct("<iI")


class Agreement:
    """One end's part of it. Used by one thread at a time.

    Args:
        nanoseconds: the time, in nanoseconds since the Unix epoch.
        capabilities: what this side can besides sessions, as a sum.
    """

    __slots__ = (
        "_capabilities", "_first", "_nanoseconds", "_taken", "agreed", "early", "output", "over",
        "told", "wanted",
    )  # fmt: skip

    def __init__(self, nanoseconds: int, capabilities: int) -> None:
        self._nanoseconds = nanoseconds
        self._capabilities = capabilities | SESSIONS
        self._taken: bytes = b""  # of the present frame
        self._first: bool = True  # whether that is the peer's first one
        #: How many bytes are wanted next; none once it is over.
        self.wanted: int = _HEADER.size
        #: What is to be sent to the peer.
        self.output: bytes = b""
        #: Whether the peer knows sessions, and wants one.
        self.agreed: bool = False
        #: The peer's capabilities, as a sum; None: it has told none.
        self.told: int | None = None
        #: Whether it has ended, with a session or without.
        self.over: bool = False
        #: What has come that belongs to the stream, if it has ended without a session.
        self.early: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take what the peer has sent, at most `wanted` bytes.

        Raises:
            BadData: the peer has agreed, and then does not keep to this.
        """
        self._taken += data
        taken = self._taken
        self.wanted -= len(data)
        if self.wanted:
            return
        number, size = _HEADER.unpack_from(taken)
        if len(taken) == _HEADER.size:
            if not self._expects(number, size):
                self._end_without()
                return
            if size:
                self.wanted = size
                return
        self._taken, first, self._first = b"", self._first, False
        value = taken[_HEADER.size :]
        if not self._take(number, value) and first:
            self._taken = taken
            self._end_without()
        elif not self.over:
            self.wanted = _HEADER.size

    @property
    def heard(self) -> bool:
        """Whether the peer has sent anything."""
        return bool(self._taken) or not self._first

    def give_up(self) -> None:
        """Do without a session, as the peer does not say anything."""
        self._end_without()

    def _end_without(self) -> None:
        self.over, self.wanted = True, 0
        self.early, self._taken = self._taken, b""

    def _expects(self, number: int, size: int) -> bool:
        """Whether such a frame may come now.

        Raises:
            BadData: only another one may.
        """
        raise NotImplementedError

    def _take(self, number: int, value: bytes) -> bool:
        """Take a frame; return False if it is none of these, which only the first may be."""
        raise NotImplementedError


class Opening(Agreement):
    """A client's end.

    Args:
        nonce: of the question, a number of 64 bits.
        hello: what is wanted; its proof is made here.
        secret: of the session to resume.
    """

    __slots__ = ("_challenge", "_hello", "_secret", "nonce", "welcome")

    def __init__(
        self, nanoseconds: int, capabilities: int, nonce: int, hello: Hello, secret: bytes = b""
    ) -> None:
        super().__init__(nanoseconds, capabilities)
        self.nonce: int = nonce
        self._hello = hello
        self._secret = secret
        self._challenge: bytes = b""
        #: The server's last word; None: there is no session.
        self.welcome: Welcome | None = None
        self.output = capability_frame(nanoseconds, ASK, self._capabilities, nonce)

    def _expects(self, number: int, size: int) -> bool:
        if self._first:
            return (number, size) == (HEARTBEAT, SIZE)
        expected = WELCOME if self._challenge else CHALLENGE
        if number != expected or size > LONGEST:
            raise BadData(f"message {number} of {size} bytes instead of the server's {expected}")
        return True

    def _take(self, number: int, value: bytes) -> bool:
        if number == HEARTBEAT:
            told = read_capabilities(value)
            if told is None or told.kind != ANSWER or told.nonce != self.nonce:
                return False
            self.told = told.capabilities
            self.agreed = bool(told.capabilities & SESSIONS)
            if not self.agreed:
                self._end_without()
        elif number == CHALLENGE:
            self._answer(value)
        else:
            self._end(read_welcome(value))
        return True

    def _answer(self, nonce: bytes) -> None:
        if len(nonce) != NONCE_SIZE:
            raise BadData(f"a challenge has {NONCE_SIZE} bytes, not {len(nonce)}")
        self._challenge, hello = nonce, self._hello
        if hello.session_id:
            hello = hello._replace(proof=hello_proof(self._secret, nonce, hello))
        self.output += hello_frame(hello)

    def _end(self, welcome: Welcome) -> None:
        hello = self._hello
        if welcome.kind == RESUMED:
            proof = answer_proof(self._secret, self._challenge, hello, welcome.received)
            if not hello.session_id or not hmac.compare_digest(proof, welcome.secret):
                raise BadData("the server does not prove that it has the session")
        elif welcome.kind == NEW and hello.session_id:
            raise BadData("the server has a new session in place of the one to resume")
        self.welcome, self.over, self.wanted = welcome, True, 0

    @property
    def came_late(self) -> bool:
        """Whether the server gives no session only as it had waited for the question too long."""
        return self.told is not None and self.told & (SESSIONS | OFFERS_SESSIONS) == OFFERS_SESSIONS

    @property
    def refusal(self) -> str:
        """Why the server gives no session, if it says so; else an empty string."""
        welcome = self.welcome
        if welcome is None or welcome.kind != REFUSED:
            return ""
        return welcome.text or "no reason given"


class Reception(Agreement):
    """A server's end. What it says last, the server decides; see `hello`.

    Args:
        nonce: of the challenge, random bytes.
    """

    __slots__ = ("hello", "nonce")

    def __init__(self, nanoseconds: int, capabilities: int, nonce: bytes) -> None:
        super().__init__(nanoseconds, capabilities)
        self.nonce: bytes = nonce
        #: What the client wants; None: no session.
        self.hello: Hello | None = None

    def _expects(self, number: int, size: int) -> bool:
        if self._first:
            return (number, size) == (HEARTBEAT, SIZE)
        # A client that has waited for too long goes on without a session.
        return number == HELLO and size <= LONGEST

    def _take(self, number: int, value: bytes) -> bool:
        if number == HEARTBEAT:
            told = read_capabilities(value)
            if told is None or told.kind != ASK or not told.capabilities & SESSIONS:
                return False
            self.agreed, self.told = True, told.capabilities
            mine = capability_frame(self._nanoseconds, ANSWER, self._capabilities, told.nonce)
            self.output += mine
            self.output += challenge_frame(self.nonce)
        else:
            self.hello, self.over, self.wanted = read_hello(value), True, 0
        return True

    def proves(self, secret: bytes) -> bool:
        """Return whether the client knows the secret of the session that it wants to resume."""
        assert self.hello is not None
        return hmac.compare_digest(self.hello.proof, hello_proof(secret, self.nonce, self.hello))

    def resumed(self, secret: bytes, received: int, linger: float) -> Welcome:
        """Return the answer to a client whose session goes on."""
        assert self.hello is not None
        proof = answer_proof(secret, self.nonce, self.hello, received)
        return Welcome(RESUMED, linger, self.hello.session_id, received, proof)
