"""What passes links from one process to another; here both ends are in one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tao.cluster.sessions.sockets import SessionNames, SessionSockets
from tao.errors import ConnectionClosed
from tao.server.sessions.links import PassedLink
from tao.session.frames import ID_SIZE, Hello
from tests.ends import Seen
from tests.injection import Interruption, raise_in
from tests.support import PATIENCE, recv_exactly, wait_until

#: Another user, who may connect to an abstract socket.
NOBODY = 65534


class Process:
    """One of the processes."""

    def __init__(self, names: SessionNames, number: int) -> None:
        self.taken = Seen()
        self.sockets = SessionSockets(
            names.prefix, number, lambda sock, link: self.taken.add((sock, link))
        )

    def link_to_it(self, remote_address: object = ("::1", 5, 0, 0)) -> PassedLink:
        session_id = bytes(ID_SIZE - len(self.sockets.mark)) + self.sockets.mark
        return PassedLink(b"n" * 16, Hello(session_id, 3, 4, 5, b"p" * 32), remote_address, "/x")

    def close(self) -> None:
        self.sockets.close()
        for sock, _ in self.taken.items:
            sock.close()


@pytest.fixture
def names() -> Iterator[SessionNames]:
    names = SessionNames()
    yield names
    names.close()


@pytest.fixture
def processes(names: SessionNames) -> Iterator[tuple[Process, Process]]:
    """Two processes of one supervisor."""
    both = Process(names, 1), Process(names, 2)
    yield both
    for each in both:
        each.close()


def test_a_link_is_passed(processes: tuple[Process, Process]) -> None:
    """The other process has the same connection, and knows what was agreed on."""
    first, second = processes
    name = ((("commonName", "alice"),),)
    for remote_address in (("::1", 5, 0, 0), "\0name", ""):
        near, far = socket.socketpair()
        with near, far:
            link = second.link_to_it(remote_address)._replace(
                tls_version="TLSv1.3", certificate={"subject": name, "version": 3}
            )
            assert first.sockets.pass_on(near, link)
            near.close()
            sock, taken = second.taken.wait(len(second.taken.items) or 1, PATIENCE)[-1]
            assert taken == link
            assert (taken.reception.nonce, taken.reception.hello) == (link.nonce, link.hello)
            assert sock.getblocking() and not sock.get_inheritable()
            transport = taken.transport_of(sock)
            assert transport.tls_version == "TLSv1.3"
            assert transport.peer_certificate["subject"] == name
            transport.send(b"hi")
            assert recv_exactly(far, 2) == b"hi"
            transport.close()
            second.taken.items.clear()


def test_the_thread_is_interrupted(processes: tuple[Process, Process]) -> None:
    """It takes further links. One that it was taking may be lost; its socket is closed."""
    first, second = processes
    for round_ in range(1, 6):
        raise_in(second.sockets._thread, Interruption)
        while len(second.taken.items) < round_:
            near, far = socket.socketpair()
            with near, far:
                assert first.sockets.pass_on(near, second.link_to_it())
                near.close()
                far.setblocking(False)
                wait_until(
                    lambda far=far, round_=round_: (
                        len(second.taken.items) == round_ or is_closed(far)
                    )
                )


def is_closed(sock: socket.socket) -> bool:
    """Return whether the other end of a non-blocking socket is closed."""
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False


def test_processes_that_are_not_there(processes: tuple[Process, Process]) -> None:
    """They have no sessions, and neither has this one any that it does not know."""
    first, second = processes
    near, far = socket.socketpair()
    with near, far:
        assert not first.sockets.pass_on(near, first.link_to_it())
        second.close()
        assert not first.sockets.pass_on(near, second.link_to_it())


def test_what_comes_for_a_process_that_is_replaced(names: SessionNames) -> None:
    """It goes to the heir: from that process as long as it lives, and then directly."""
    old, new, third = Process(names, 1), Process(names, 2), Process(names, 3)
    near, far = socket.socketpair()
    with near, far:
        assert not old.sockets.pass_on(near, old.link_to_it(), again=True)
        old.sockets.heir = 2
        assert old.sockets.pass_on(near, old.link_to_it())
        assert old.sockets.pass_on(near, third.link_to_it(), again=True)
        assert len(new.taken.wait(2)) == 2 and not third.taken.items
        old.close()
        wait_until(lambda: len(new.sockets._listening) == 2)
        assert third.sockets.pass_on(near, old.link_to_it())
        new.taken.wait(3)
        new.sockets.heir = 3
        new.close()
        wait_until(lambda: len(third.sockets._listening) == 3)
        last = Process(names, 4)
        assert last.sockets.pass_on(near, old.link_to_it())
        assert last.sockets.pass_on(near, new.link_to_it())
        third.taken.wait(2)
    for each in (third, last):
        each.close()


def test_what_was_passed_to_a_process_that_ends(names: SessionNames) -> None:
    """It is closed, so that the client comes again; and a full backlog is no end of the session."""
    first = Process(names, 1)
    link = first.link_to_it()
    first.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(f"{names.prefix}1")
        silent.listen(0)
        second = Process(names, 2)
        near, far = socket.socketpair()
        with near, far:
            with pytest.raises(ConnectionClosed, match="does not take it now"):
                for _ in range(10):
                    assert second.sockets.pass_on(near, link)
            near.close()
            silent.close()
            assert far.recv(1) == b""
    second.close()


@pytest.mark.parametrize("data", [b"", b"{}", b"rubbish", b"M", b"M" + bytes(100), b"M" * 100])
def test_rubbish_ends_nothing(
    processes: tuple[Process, Process], names: SessionNames, data: bytes
) -> None:
    """What is no link is closed; the next one is taken."""
    first, second = processes
    near, far = socket.socketpair()
    with near, far:
        for descriptors in ([], [near.fileno()]):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
                way.connect(f"{names.prefix}2")
                socket.send_fds(way, [data], descriptors)
        assert first.sockets.pass_on(near, second.link_to_it())
        assert len(second.taken.wait()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users(processes: tuple[Process, Process], names: SessionNames) -> None:
    """Nothing is taken from them, and nothing is passed to them."""
    first, second = processes
    prefix = names.prefix
    far, near = socket.socketpair()
    with near, far:
        program = f"""
import os, socket, sys
os.setgid({NOBODY})
os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
    way.connect({f"{prefix}2"!r})
    assert way.recv(1) == b""
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as false:
    false.bind({f"{prefix}1"!r})
    false.listen()
    print("listens", flush=True)
    sys.stdin.read()
"""
        link = first.link_to_it()
        first.close()
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True
        ) as other:
            assert other.stdout is not None and other.stdout.readline() == "listens\n"
            assert not second.sockets.pass_on(near, link)
            other.communicate()
        assert not second.taken.items
