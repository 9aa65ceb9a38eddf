"""Binding: from an address to a socket that listens."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any, NamedTuple

from tao.transport.addresses import Address, Target, address_text, normalized, parse, resolve
from tao.transport.error_text import explain
from tao.transport.unix_sockets import SocketFile, bind_unix

__all__ = ["Bound", "listen"]

# Errors of binding that mean that this machine lacks the address. It may have another address of
# the same name.
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Bound(NamedTuple):
    """A listening, non-blocking socket.

    Attributes:
        sock: the socket.
        file: the file of a Unix socket, or None.
        given: the socket that the caller passed; `sock` is a duplicate, so that the caller may
            close its own. None: the socket was created here.
    """

    sock: socket.socket
    file: SocketFile | None = None
    given: socket.socket | None = None

    def close(self) -> None:
        """Stop listening.

        Raises:
            OSError: the file cannot be removed; the socket is closed.
        """
        try:
            if self.file is not None:
                self.file.remove()  # first, see transport/unix_sockets.py
        finally:
            self.sock.close()
            if self.given is not None:
                self.given.close()

    def discard(self) -> None:
        """Close it before use; a socket passed by the caller stays open."""
        if self.given is None:
            self.close()
        else:
            self.sock.close()


def listen(address: Address | socket.socket, backlog: int, *, reuse_port: bool = False) -> Bound:
    """Listen at an address, or on a socket that is bound to one.

    If a name has several addresses, this uses an IPv4 address if there is one, as Go does, else the
    first that this machine has.

    Args:
        address: in any form of ``transport/addresses.py``, or a bound stream socket, which may
            listen already.
        backlog: how many connections may wait in the listen backlog.
        reuse_port: allow other sockets to listen at the same address, if they all do.

    Raises:
        OSError: listening failed; the text names the address.
        TypeError, ValueError: the address is invalid, or the socket cannot accept connections; the
            text says why.
    """
    if isinstance(address, socket.socket):
        bound = Bound(_listening(address, backlog).dup(), given=address)
    else:
        bound = _listening_at(parse(address, listening=True), backlog, reuse_port)
    bound.sock.setblocking(False)
    return bound


def _listening_at(address: tuple[Any, ...] | str, backlog: int, reuse_port: bool) -> Bound:
    *others, last = _targets(address)
    for target in others:
        try:
            return _bind(target, address, backlog, reuse_port)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
    return _bind(last, address, backlog, reuse_port)


def _targets(address: tuple[Any, ...] | str) -> list[Target]:
    """Return the addresses to try in turn until one can be bound."""
    if not address[0]:
        if socket.has_dualstack_ipv6():
            return [Target(socket.AF_INET6, ("::", address[1]))]
        return [Target(socket.AF_INET, ("0.0.0.0", address[1]))]
    try:
        targets = resolve(address)
    except OSError as error:
        raise _refused(address, error) from None
    return sorted(targets, key=lambda target: target.family != socket.AF_INET)


def _bind(target: Target, address: Any, backlog: int, reuse_port: bool) -> Bound:
    """Listen at a target of an address."""
    sock, file = None, None
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        if reuse_port and target.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if target.family == socket.AF_UNIX:
            file = bind_unix(sock, target.address, backlog)
        else:
            _bind_tcp(sock, target, backlog, everywhere=not address[0])
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, (OSError, OverflowError)):
            raise _refused(address, error) from None
        raise
    return Bound(sock, file)


def _bind_tcp(sock: socket.socket, target: Target, backlog: int, everywhere: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if target.family == socket.AF_INET6:
        # Only a server without a host accepts IPv4 on this socket as well.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not everywhere))
    sock.bind(target.address)
    sock.listen(backlog)


def _refused(address: Any, error: OSError | OverflowError) -> OSError:
    number = getattr(error, "errno", None) or errno.EINVAL
    why = error.strerror if isinstance(error, FileExistsError) else explain(error)
    return OSError(number, f"cannot listen at {address_text(address)}: {why}")


def _listening(sock: socket.socket, backlog: int) -> socket.socket:
    """Make the caller's socket listen, unless it does already.

    Raises:
        ValueError: it cannot accept connections; the text says why.
        OSError: it cannot listen.
    """
    if sock.fileno() < 0:
        raise ValueError("the socket is closed: pass one that is bound to an address")
    if isinstance(sock, ssl.SSLSocket):
        raise ValueError("pass the plain socket, and the SSLContext as tls")
    if sock.type != socket.SOCK_STREAM:
        kind = "UDP" if sock.type == socket.SOCK_DGRAM else "another kind"
        raise ValueError(
            f"the socket is of {kind} ({getattr(sock.type, 'name', sock.type)}): it cannot accept "
            "connections; pass a stream socket"
        )
    if _getpeername(sock) is not None:
        raise ValueError(
            f"the socket is connected to {address_text(_getpeername(sock))}: it cannot accept "
            "connections; pass one that is bound to an address"
        )
    if not _is_bound(sock):
        raise ValueError("the socket is not bound to an address: bind it first")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        try:
            sock.listen(backlog)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise ValueError("the socket was connected: it cannot accept connections") from None
            where = address_text(normalized(sock.getsockname()))
            raise OSError(error.errno, f"cannot listen at {where}: {explain(error)}") from None
    return sock


def _getpeername(sock: socket.socket) -> Any:
    try:
        return normalized(sock.getpeername())
    except OSError:
        return None


def _is_bound(sock: socket.socket) -> bool:
    address = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return bool(address[1])
    return bool(address)
