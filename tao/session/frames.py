"""What two tao peers tell each other about a session, in tao's own framing.

Five reserved message numbers carry it, after those of ``wire/envelope.py``. Everything is
little-endian::

    CHALLENGE  -2147483643   nonce, 16 bytes
    HELLO      -2147483642   version u8 = 1 | kind u8 | 0 u16 | attempt u32 | id, 16 bytes |
                             received u64 | kept from u64 | proof, 32 bytes
    WELCOME    -2147483641   version u8 = 1 | kind u8 | 0 u16 | linger u32 | id, 16 bytes |
                             received u64 | secret or proof, 32 bytes | text, UTF-8
    ACK        -2147483640   handled u64
    END        -2147483639

The kind of a HELLO is 1 for a new session, and 2 to resume one. For a new one the id is a random
one that the client keeps until it gets an answer, and all that follows it is zero. The kind of a
WELCOME is 1 for a new session, whose id and secret it has, 2 for a resumed one, and 3 if there is
none, as the text says. ``received`` and ``handled`` are positions in the stream of the other side,
in bytes; its bytes before ``kept from`` are not kept any more. ``linger`` says for how many
milliseconds a session can be resumed whose connection is lost. ``attempt`` grows with each HELLO
that has the same id.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tao.errors import BadData
from tao.wire.envelope import LEAVE

__all__ = [
    "ACK",
    "CHALLENGE",
    "END",
    "END_FRAME",
    "HELLO",
    "ID_SIZE",
    "LONGEST",
    "NEW",
    "NONCE_SIZE",
    "REFUSED",
    "RESUMED",
    "SECRET_SIZE",
    "WELCOME",
    "Hello",
    "Welcome",
    "ack_frame",
    "answer_proof",
    "challenge_frame",
    "frames_in",
    "hello_frame",
    "hello_proof",
    "is_one_frame",
    "read_ack",
    "read_hello",
    "read_welcome",
    "welcome_frame",
]

CHALLENGE, HELLO, WELCOME, ACK, END = range(LEAVE + 1, LEAVE + 6)
#: The kinds of a HELLO, and of a WELCOME.
NEW, RESUMED, REFUSED = 1, 2, 3
ID_SIZE, NONCE_SIZE, SECRET_SIZE = 16, 16, 32

_VERSION = 1
_HEADER = struct.Struct("<iI")
_HELLO = struct.Struct("<BBHI16sQQ32s")
_WELCOME = struct.Struct("<BBHI16sQ32s")
_ACK = struct.Struct("<iIQ")
_POSITION = struct.Struct("<Q")
_PROVED = struct.Struct("<16s16sIQQ")
_NO_ID, _NO_SECRET = bytes(ID_SIZE), bytes(SECRET_SIZE)
# How long the text of a WELCOME may be, in bytes.
_TEXT_MOST = 512
#: How many bytes the value of any of these may have.
LONGEST = _WELCOME.size + _TEXT_MOST

#: Ends a session; nothing follows.
END_FRAME = _HEADER.pack(END, 0)


class Hello(NamedTuple):
    """What a client says.

    Attributes:
        session_id: of the session to resume; empty: a new one is wanted.
        attempt: the number of the attempt to resume it, or to have this wish granted.
        received: how far the client has received the server's stream.
        first: from where on it keeps its own.
        proof: that it knows the secret.
        wish: identifies the client's wish for a new session; empty: nothing does.
    """

    session_id: bytes = b""
    attempt: int = 0
    received: int = 0
    first: int = 0
    proof: bytes = _NO_SECRET
    wish: bytes = b""


class Welcome(NamedTuple):
    """What a server answers.

    Attributes:
        kind: `NEW`, `RESUMED` or `REFUSED`.
        linger: for how many seconds the session can be resumed when its connection is lost.
        session_id: of the session.
        received: how far the server has received the client's stream.
        secret: of a new session; of a resumed one the proof that the server knows it.
        text: why it is refused.
    """

    kind: int
    linger: float = 0.0
    session_id: bytes = _NO_ID
    received: int = 0
    secret: bytes = _NO_SECRET
    text: str = ""


def is_one_frame(data: bytes) -> bool:
    """Whether this is one whole frame, and nothing else."""
    return len(data) >= _HEADER.size and _HEADER.unpack_from(data)[1] == len(data) - _HEADER.size


def frames_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the value of each frame; the last one may be incomplete, and is not."""
    start = 0
    while start + _HEADER.size <= len(data):
        number, size = _HEADER.unpack_from(data, start)
        value, start = start + _HEADER.size, start + _HEADER.size + size
        if start <= len(data):
            yield number, data[value:start]


def challenge_frame(nonce: bytes) -> bytes:
    """Return the frame with what a proof is to be made of."""
    return _HEADER.pack(CHALLENGE, len(nonce)) + nonce


def hello_frame(hello: Hello) -> bytes:
    """Return the frame of a HELLO."""
    kind = RESUMED if hello.session_id else NEW
    value = _HELLO.pack(
        _VERSION,
        kind,
        0,
        hello.attempt,
        hello.session_id or hello.wish or _NO_ID,
        hello.received,
        hello.first,
        hello.proof,
    )
    return _HEADER.pack(HELLO, len(value)) + value


def read_hello(value: bytes) -> Hello:
    """Read the value of a HELLO.

    Raises:
        BadData: it is none of this version.
    """
    if len(value) != _HELLO.size:
        raise BadData(f"the HELLO of a session has {_HELLO.size} bytes, not {len(value)}")
    version, kind, _, attempt, session_id, received, first, proof = _HELLO.unpack(value)
    if version != _VERSION or kind not in (NEW, RESUMED):
        raise BadData(f"a HELLO of version {version} and kind {kind} is not known")
    if kind == NEW:
        return Hello(b"", attempt, received, first, proof, session_id if any(session_id) else b"")
    return Hello(session_id, attempt, received, first, proof)


def welcome_frame(welcome: Welcome) -> bytes:
    """Return the frame of a WELCOME. A text that is too long is cut."""
    milliseconds = min(int(welcome.linger * 1000), 2**32 - 1)
    text = welcome.text.encode("utf-8", "replace")[:_TEXT_MOST]
    value = (
        _WELCOME.pack(
            _VERSION,
            welcome.kind,
            0,
            milliseconds,
            welcome.session_id,
            welcome.received,
            welcome.secret,
        )
        + text
    )
    return _HEADER.pack(WELCOME, len(value)) + value


def read_welcome(value: bytes) -> Welcome:
    """Read the value of a WELCOME.

    Raises:
        BadData: it is none of this version.
    """
    if len(value) < _WELCOME.size:
        raise BadData(f"a WELCOME of {len(value)} bytes is too short")
    version, kind, _, milliseconds, session_id, received, secret = _WELCOME.unpack_from(value)
    if version != _VERSION or kind not in (NEW, RESUMED, REFUSED):
        raise BadData(f"a WELCOME of version {version} and kind {kind} is not known")
    text = value[_WELCOME.size :].decode("utf-8", "replace")
    return Welcome(kind, milliseconds / 1000, session_id, received, secret, text)


def ack_frame(position: int) -> bytes:
    """Return the frame that acknowledges what was handled."""
    return _ACK.pack(ACK, _POSITION.size, position)


def read_ack(value: bytes) -> int:
    """Read the value of an ACK: the position.

    Raises:
        BadData: it is of the wrong size.
    """
    if len(value) != _POSITION.size:
        raise BadData(f"an acknowledgement has {_POSITION.size} bytes, not {len(value)}")
    position: int = _POSITION.unpack(value)[0]
    return position


def hello_proof(secret: bytes, nonce: bytes, hello: Hello) -> bytes:
    """Return what proves that a client knows the secret of the session that it resumes."""
    said = _PROVED.pack(nonce, hello.session_id, hello.attempt, hello.received, hello.first)
    return hmac.digest(secret, b"tao session client" + said, "sha256")


def answer_proof(secret: bytes, nonce: bytes, hello: Hello, received: int) -> bytes:
    """Return what proves that the server knows it, too."""
    said = _PROVED.pack(nonce, hello.session_id, hello.attempt, received, hello.received)
    return hmac.digest(secret, b"tao session server" + said, "sha256")
