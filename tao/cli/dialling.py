"""Connect to the address given on the command line, within a strict timeout."""

from __future__ import annotations

import socket
from time import monotonic

from tao.cli.common import Address
from tao.client.happy_eyeballs import Memory, Race
from tao.connection.options.definitions import ClientSettings
from tao.runtime.helper_threads import Bell
from tao.transport.addresses import parse

__all__ = ["reach"]


def reach(address: Address, timeout: float) -> socket.socket:
    """Return a connected, blocking socket.

    The timeout covers everything: name resolution, even if the name server hangs, and the attempts
    for all addresses of the name.

    Raises:
        OSError: connecting failed or timed out; the text says why.
        ValueError: the address is invalid.
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
