"""Giving a session to another process, over a Unix socket.

::

    old process                              new process
      what there is of the session  ----->
                                    <-----   READY, or why not; the end
      MINE_NO_MORE, or ENDED        ----->

Only the last byte gives the session to the new process. If the old one ends before, the new one
knows that it has to tell the application what is lost.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, Final

from tao.errors import BadData
from tao.server.sessions.moves import MovedSession
from tao.session.moved import SessionState

__all__ = ["KIND", "SessionArrival", "give", "with_tuples"]

#: The first byte, which tells a session from a link.
KIND: Final = b"M"
# How long the other process may take for each step, in seconds.
_PATIENCE: Final = 10.0
# The first byte, and the sizes of what follows: the description, what was sent, what was saved.
_HEAD: Final = struct.Struct("!cIQQ")
_READY, _MINE_NO_MORE, _ENDED = b"\1", b"\1", b"\0"
_PIECE: Final = 256 * 1024
_LONGEST_TEXT: Final = 512


def give(way: socket.socket, moved: MovedSession, decided: list[bool]) -> str:
    """Give a session to the process at the other end; see `SessionPort.hand_over`.

    Raises:
        OSError: that process has ended, or hangs.
    """
    way.settimeout(_PATIENCE)
    try:
        for each in _packed(moved):
            way.sendall(each)
        answer = way.recv(_LONGEST_TEXT)
        if answer != _READY:
            if not answer:
                raise ConnectionResetError("it has ended")
            return answer.decode(errors="replace")
        decided.append(True)
        way.sendall(_MINE_NO_MORE)
    except BaseException as error:
        if isinstance(error, OSError):
            decided.clear()
        if not decided:
            _say(way, _ENDED)
        raise
    return ""


def _say(way: socket.socket, word: bytes) -> None:
    try:
        way.sendall(word)
    except OSError:
        pass  # the other process is gone


class SessionArrival:
    """See `Arrival`.

    Args:
        way: to the other process; it belongs to this from now on.
        begun: the first bytes that came.

    Raises:
        BadData: it is no session.
        OSError: the other process takes too long.
    """

    def __init__(self, way: socket.socket, begun: bytes) -> None:
        self._way = way
        way.settimeout(_PATIENCE)
        #: What there is of the session.
        self.moved: MovedSession = _received(way, begun)
        # The first counts: whether the other process was answered, by any thread.
        self._answered: dict[str, object] = {}
        near, self._far = socket.socketpair()
        #: The connection's first link, which leads nowhere.
        self.link: socket.socket = near

    def _answers(self) -> bool:
        mine = object()
        return self._answered.setdefault("by", mine) is mine

    def accept(self) -> bool | None:
        """See `Arrival.accept`."""
        if not self._answers():
            return None
        with self._way as way:
            way.settimeout(None)  # until it has decided, or has ended
            _say(way, _READY)
            try:
                word = way.recv(1)  # there may be one although it has closed meanwhile
            except OSError:
                word = b""
        return None if not word else word == _MINE_NO_MORE

    def refuse(self, why: str) -> None:
        """See `Arrival.refuse`."""
        self._far.close()
        if self._answers():
            with self._way as way:
                _say(way, why.encode()[:_LONGEST_TEXT])

    def opened(self) -> None:
        """See `Arrival.opened`."""
        self._far.close()


def _packed(moved: MovedSession) -> list[bytes]:
    state = moved.state
    told = moved._asdict() | {"state": state._replace(sent=b"")._asdict(), "saved": None}
    described = json.dumps(told, default=_as_json).encode()
    head = _HEAD.pack(KIND, len(described), len(state.sent), len(moved.saved))
    return [head + described, state.sent, moved.saved]


def _as_json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else os.fsdecode(value)


def _received(way: socket.socket, begun: bytes) -> MovedSession:
    data = bytearray(begun)
    _receive_up_to(way, data, _HEAD.size)
    kind, described, sent, saved = _HEAD.unpack_from(data)
    if kind != KIND:
        raise BadData("it is no session")
    _receive_up_to(way, data, _HEAD.size + described + sent + saved)
    view = memoryview(data)[_HEAD.size :]
    told: dict[str, Any] = json.loads(bytes(view[:described]))
    state: dict[str, Any] = told["state"]
    for name in ("session_id", "secret", "wish"):
        state[name] = bytes.fromhex(state[name])
    state["subject"] = with_tuples(state["subject"])
    state["sent"] = bytes(view[described : described + sent])
    told["state"] = SessionState(**state)
    told["saved"] = bytes(view[described + sent :])
    for name in ("remote_address", "local_address", "certificate"):
        told[name] = with_tuples(told[name])
    return MovedSession(**told)


def _receive_up_to(way: socket.socket, data: bytearray, size: int) -> None:
    while len(data) < size:
        piece = way.recv(min(_PIECE, size - len(data)))
        if not piece:
            raise BadData("the other process has ended in the midst of it")
        data += piece


def with_tuples(told: Any) -> Any:
    """Return what was told with tuples, as it was before, in place of JSON's lists."""
    if isinstance(told, list):
        return tuple(map(with_tuples, told))
    if isinstance(told, dict):
        return {name: with_tuples(value) for name, value in told.items()}
    return told
