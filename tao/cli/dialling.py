"""Connecting to what the command line names, in a time that nothing prolongs."""

from __future__ import annotations

import socket
from time import monotonic

from tao.cli.common import Address
from tao.client.happy_eyeballs import Memory, Race
from tao.connection.options import ClientSettings
from tao.runtime.helper_threads import Bell
from tao.transport.addresses import parse

__all__ = ["reach"]


def reach(address: Address, timeout: float) -> socket.socket:
    """Return a socket that is connected, and blocks.

    The timeout is for all of it: resolving the name, however the name server behaves, and every
    address that it has.

    Raises:
        OSError: no connection, or none in time; the text says why.
        ValueError: it is no address.
    """
    options = ClientSettings(connect_timeout=timeout)
    with Bell() as bell:
        race = Race(parse(address), Memory(), options, bell)
        ready: set[int] = set()
        try:
            while not race.over:
                sock = race.step(monotonic(), ready)
                if sock is not None:
                    sock.setblocking(True)
                    return sock
                if not race.over:
                    ready = bell.wait(race.polled, race.due)
            raise OSError(race.reason)
        finally:
            race.end()
