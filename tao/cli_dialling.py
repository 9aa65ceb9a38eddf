"""Connecting to what the command line names, in a time that nothing prolongs."""

from __future__ import annotations

import select
import socket
from time import monotonic

from tao.addresses import parse
from tao.cli_common import Address
from tao.errands import Bell
from tao.happy_eyeballs import Memory, Race
from tao.options import ClientOptions

__all__ = ["reach"]


def reach(address: Address, timeout: float) -> socket.socket:
    """Return a socket that is connected, and blocks.

    The timeout is for all of it: resolving the name, however the name server behaves, and every
    address that it has.

    Raises:
        OSError: nobody is there, or not in time; the text says why.
        ValueError: it is no address.
    """
    options = ClientOptions(connect_timeout=timeout)
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
                    ready = _wait(race, bell)
            raise OSError(race.reason)
        finally:
            race.end()


def _wait(race: Race, bell: Bell) -> set[int]:
    """Wait until there is something to do; return the descriptors that are ready."""
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    for descriptor in race.polled:
        poll.register(descriptor, select.POLLOUT)
    ready = {each for each, _ in poll.poll(max(0.0, race.due - monotonic()) * 1000)}
    bell.clear()
    return ready
