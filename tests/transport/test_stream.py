"""Byte streams: plain and TLS, in both directions, and their errors."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tao.errors import ConnectionClosed, HandshakeFailed
from tao.transport.certificates import DevelopmentCA, self_signed_certificate
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tests.support import PATIENCE, ends, together, wait_until
from tests.tls_pairs import (
    ALICE,
    CA,
    CLIENT,
    MUTUAL_SERVER,
    SERVER,
    shake_hands,
    tcp_pair,
    tls_pair,
)

#: How many bytes the longest test transfers in each direction.
MEGABYTES = int(os.environ.get("TAO_TEST_MEGABYTES", "200"))
KIB, MIB = 1024, 1024 * 1024

Pair = tuple[Transport, Transport]


def plain_pair() -> Pair:
    ours, theirs = tcp_pair()
    return Transport(ours), Transport(theirs)


def encrypted_pair() -> Pair:
    pair = tls_pair()
    shake_hands(*pair)
    return pair


@pytest.fixture(params=[plain_pair, encrypted_pair], ids=["plain", "tls"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two connected transports, ready to use."""
    transports = request.param()
    yield transports
    close(*transports)


def close(*ends: Transport | socket.socket) -> None:
    for end in ends:
        end.close()


def send_all(transport: Transport, data: bytes | memoryview) -> None:
    """Send all data, as the send queue does."""
    rest = memoryview(data)
    while rest:
        taken = transport.send(rest)
        rest = rest[taken:]
        if not taken:
            transport.wait_writable()


def recv_all(transport: Transport, size: int = 64 * KIB) -> bytes:
    """Read to the end, in both ways."""
    data, ways = bytearray(), itertools.cycle((transport.recv, transport.recv_much))
    while piece := next(ways)(size):
        assert len(piece) <= size
        data += piece
    return bytes(data)


def end(transport: Transport) -> None:
    while not transport.shutdown_write():
        transport.wait_writable()


def fill(transport: Transport) -> int:
    """Send until the socket is full; return the number of bytes."""
    total = 0
    while taken := transport.send(bytes(64 * KIB)):
        total += taken
    return total


def failure(transport: Transport, timeout: float | None = PATIENCE) -> str:
    """Return the error of a failing handshake."""
    with pytest.raises(HandshakeFailed) as caught:
        transport.handshake(timeout)
    return str(caught.value)


def failures(server: Transport, client: Transport) -> list[str]:
    """Return the errors of both ends of a failing handshake, the server's first."""
    return together(lambda: failure(server), lambda: failure(client))


# -- plain and TLS


def test_sends_and_receives(pair: Pair) -> None:
    """Data arrives in both directions; ending one direction leaves the other open."""
    a, b = pair
    send_all(a, b"question")
    assert b.recv(8 * KIB) == b"question"
    send_all(b, b"answer")
    end(b)
    assert recv_all(a) == b"answer"
    assert a.recv(100) == b"", "an end stays the end"


def test_large_data_in_all_sizes(pair: Pair) -> None:
    """A megabyte sent at once and received in uneven pieces arrives unchanged."""
    a, b = pair
    data = random.Random(1).randbytes(MIB)

    def send() -> None:
        send_all(a, data)
        end(a)

    assert together(send, lambda: recv_all(b, 1237))[1] == data


def test_send_does_not_block(pair: Pair) -> None:
    """A full socket accepts nothing, and ``send`` returns 0."""
    a, b = pair
    fill(a)
    assert a.send(bytes(64 * KIB)) == 0
    b.abort()


@pytest.mark.parametrize("much", [False, True])
def test_abort_wakes_a_reader(pair: Pair, much: bool) -> None:
    """A thread that waits for data returns or raises when any thread aborts."""
    a, _ = pair
    waiting = threading.Event()

    def read() -> bytes | str:
        waiting.set()
        try:
            return a.recv_much(100) if much else a.recv(100)
        except ConnectionClosed as error:
            return str(error)

    def abort() -> None:
        assert waiting.wait(PATIENCE)
        a.abort()

    assert together(read, abort)[0] in (b"", "peer closed without saying so in TLS")


def test_no_memory_is_taken_for_what_has_not_come(pair: Pair) -> None:
    """A thread that waits for much holds no memory for it."""
    a, b = pair
    came = list[bytes]()
    reader = threading.Thread(target=lambda: came.append(a.recv_much(64 * MIB)), daemon=True)
    tracemalloc.start()
    try:
        reader.start()
        reader.join(0.1)
        assert reader.is_alive()
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    send_all(b, b"x")
    reader.join(PATIENCE)
    assert came == [b"x"]


def test_abort_wakes_a_thread_that_waits_to_send(pair: Pair) -> None:
    """A thread that waits for a full socket returns when any thread aborts, and cannot send."""
    a, _ = pair
    fill(a)
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        a.wait_writable()

    def abort() -> None:
        assert waiting.wait(PATIENCE)
        a.abort()

    together(wait, abort)
    with pytest.raises(OSError):
        a.send(bytes(64 * KIB))


def test_abort_and_close_in_any_order(pair: Pair) -> None:
    """Both may be called twice, and an abort after a close has no effect."""
    a, b = pair
    a.abort()
    a.abort()
    a.close()
    a.close()
    a.abort()
    assert ends(b.abort)


def test_the_sender_gets_the_error_of_a_reset(pair: Pair) -> None:
    """The first send after a reset raises the original error."""
    a, b = pair
    b._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    b.close()
    with pytest.raises(ConnectionResetError):
        send_all(a, bytes(8 * KIB))


def test_a_reset_peer(pair: Pair) -> None:
    """A reset raises in both ``recv`` and ``send``."""
    a, b = pair
    b._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    b.close()
    with pytest.raises(OSError) as caught:
        recv_all(a)
    assert explain(caught.value) == "connection reset by peer"
    with pytest.raises(OSError) as caught:
        send_all(a, bytes(64 * KIB))
    assert explain(caught.value) == "peer closed"
    a.abort()


def test_a_plain_transport_has_no_tls() -> None:
    """Its handshake does nothing, and the peer has no certificate."""
    a, b = plain_pair()
    a.handshake(0.0)
    assert (a.peer_certificate, a.tls_version, a.committed_bytes) == (None, None, 0)
    close(a, b)


def test_a_unix_socket() -> None:
    """A transport on a Unix socket sets no TCP options."""
    ours, theirs = socket.socketpair()
    a, b = Transport(ours), Transport(theirs)
    send_all(a, b"hi")
    assert b.recv(10) == b"hi"
    close(a, b)


# -- handshakes


def test_both_ends_know_the_tls_version() -> None:
    """After the handshake the version is known, and the client's certificate with mutual TLS."""
    server, client = tls_pair(MUTUAL_SERVER, ALICE)
    assert (server.tls_version, server.peer_certificate) == (None, None)
    shake_hands(server, client)
    assert server.tls_version == client.tls_version == "TLSv1.3"
    certificate = server.peer_certificate
    assert certificate is not None
    assert certificate["subject"] == ((("commonName", "alice"),),)
    assert client.peer_certificate is not None
    close(server, client)


def test_without_mutual_tls() -> None:
    """The server does not know the client's certificate."""
    server, client = encrypted_pair()
    assert server.peer_certificate is None
    close(server, client)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_versions(version: str) -> None:
    """TLS 1.2 and 1.3 both work, including a graceful end."""
    context = CA.issue().client_config()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    server, client = tls_pair(client=context)
    shake_hands(server, client)
    assert server.tls_version == version
    send_all(client, b"x" * 50_000)
    end(client)
    assert recv_all(server) == b"x" * 50_000
    end(server)
    assert recv_all(client) == b""
    close(server, client)


def test_old_versions_are_refused() -> None:
    """A client that supports only TLS 1.1 is refused, with an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    server, client = tls_pair(client=context)
    told, seen = failures(server, client)
    assert "unsupported protocol" in told and "protocol version" in seen
    close(server, client)


def test_a_wrong_host() -> None:
    """A certificate for another name is refused with a clear error, and the server is notified."""
    server, client = tls_pair(hostname="bank.example")
    told, seen = failures(server, client)
    assert "certificate is refused: Hostname mismatch" in seen and "bank.example" in seen
    assert "alert" in told
    close(server, client)


def test_an_unknown_authority() -> None:
    """A certificate from an untrusted authority is refused, and the server is notified."""
    server, client = tls_pair(DevelopmentCA("other").issue().server_config())
    told, seen = failures(server, client)
    assert "certificate is refused: unable to get local issuer certificate" in seen
    assert "unknown ca" in told
    close(server, client)


def test_an_expired_certificate() -> None:
    """An expired certificate is refused."""
    expired = self_signed_certificate(days=-1)
    server, client = tls_pair(expired.server_config(), expired.client_config())
    _, seen = failures(server, client)
    assert "certificate has expired" in seen
    close(server, client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_certificate(version: ssl.TLSVersion) -> None:
    """Mutual TLS refuses it; with TLS 1.3, its first read raises the error."""
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.load_verify_locations(cadata=CA.certificate.decode())
    nameless.maximum_version = version
    server, client = tls_pair(MUTUAL_SERVER, nameless)

    def be_client() -> str:
        with pytest.raises(OSError) as caught:
            client.handshake(PATIENCE)
            client.recv(100)
        return explain(caught.value)

    told, seen = together(lambda: failure(server), be_client)
    assert "peer did not return a certificate" in told
    assert "alert" in seen
    close(server, client)


def test_a_silent_peer() -> None:
    """A handshake ends at its deadline, on either side, with a clear error."""
    server, client = tls_pair()
    assert failure(server, 0.01) == "TLS handshake not done after 0.01 s"
    close(server, client)
    ours, theirs = tcp_pair()
    client = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
    assert failure(client, 0.01) == "TLS handshake not done after 0.01 s"
    close(client, theirs)


def test_a_handshake_in_small_pieces() -> None:
    """A handshake that arrives byte by byte succeeds if it ends in time."""
    ours, theirs = tcp_pair()
    server = TlsTransport(ours, SERVER, server_side=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    machine = CLIENT.wrap_bio(incoming, outgoing, False, "localhost")

    def be_client() -> None:
        while True:
            try:
                machine.do_handshake()
            except ssl.SSLWantReadError:
                pass
            for byte in outgoing.read():
                theirs.send(bytes([byte]))
            if machine.version():
                return
            incoming.write(theirs.recv(100))

    together(lambda: server.handshake(PATIENCE), be_client)
    assert server.tls_version == "TLSv1.3"
    close(server, theirs)


@pytest.mark.parametrize("timeout", [None, 1e9, threading.TIMEOUT_MAX])
def test_any_handshake_timeout_is_accepted(timeout: float | None) -> None:
    """A timeout longer than the system permits works like no timeout."""
    server, client = tls_pair()
    together(lambda: server.handshake(timeout), lambda: client.handshake(timeout))
    close(server, client)


def test_certificates_larger_than_the_socket_buffer() -> None:
    """A handshake continues when the socket has room again, without waiting for the peer."""
    large = DevelopmentCA()
    context = large.issue("localhost", *(f"host-{n}.example" for n in range(5000))).server_config()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
    client_context = large.issue().client_config()
    server, client = tls_pair(context, client_context, sockets=(ours, theirs))
    assert not server._outgoing.pending
    shake_hands(server, client)
    send_all(client, b"hi")
    assert server.recv(10) == b"hi"
    close(server, client)


def test_a_certificate_that_the_peer_does_not_read() -> None:
    """The deadline also ends a handshake that waits for room in the socket."""
    large = DevelopmentCA().issue("localhost", *(f"host-{n}.example" for n in range(5000)))
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
    server = TlsTransport(ours, large.server_config(), server_side=True)
    client = CLIENT.wrap_bio(ssl.MemoryBIO(), hello := ssl.MemoryBIO(), False, "localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    theirs.sendall(hello.read())
    assert "not done after 0.05 s" in failure(server, 0.05)
    close(server, theirs)


def test_a_peer_that_closes_during_the_handshake() -> None:
    """Both sides report it, and the client suggests a cause."""
    server, client = tls_pair()
    client.close()
    assert failure(server) == "the peer hung up during the TLS handshake"
    server.close()
    server, client = tls_pair()
    server.close()
    assert "does it speak TLS on this port?" in failure(client)
    client.close()


def test_a_peer_that_resets_during_the_handshake() -> None:
    """A reset is reported like a close."""
    ours, theirs = tcp_pair()
    client = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    together(lambda: failure(client), lambda: (theirs.recv(1), theirs.close()))
    ours.close()


def test_abort_ends_a_handshake() -> None:
    """A handshake that waits for its peer ends when any thread aborts."""
    server, client = tls_pair()
    _, text = together(server.abort, lambda: failure(server, None))
    assert "hung up" in text or "peer closed" in text
    close(server, client)


def test_a_socket_error_during_the_handshake() -> None:
    """Any other socket error is a failed handshake as well."""
    ours, theirs = tcp_pair()
    client = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
    client.abort()
    assert failure(client) == "TLS handshake failed: peer closed"
    close(client, theirs)


@pytest.mark.parametrize(
    "said", [b"\1\0\0\0\2\0\0\0hi", b"GET / HTTP/1.1\r\n\r\n", b"hello, is there anybody?\n"]
)
def test_a_peer_that_speaks_plain_text(said: bytes) -> None:
    """Plain text on a TLS port is recognized, and answered by an alert."""
    ours, theirs = tcp_pair()
    server = TlsTransport(ours, SERVER, server_side=True)
    theirs.sendall(said)
    assert "the peer does not speak TLS" in failure(server)
    assert theirs.recv(100) == b"\x15\x03\x01\0\x02\x02\x46"
    close(server, theirs)


def test_a_server_that_speaks_plain_text() -> None:
    """A client that gets plain text as an answer reports that."""
    ours, theirs = tcp_pair()
    client = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
    theirs.sendall(b"220 mail.example ESMTP\r\n")
    assert "the peer does not speak TLS" in failure(client)
    close(client, theirs)


# -- the end of TLS


def test_close_notify_is_the_end() -> None:
    """A close_notify ends the stream gracefully, even while the socket stays open."""
    server, client = encrypted_pair()
    client._machine.write(b"bye")
    with client._lock:
        with pytest.raises(ssl.SSLWantReadError):
            client._machine.unwrap()
        client._flush()
    assert (server.recv(100), server.recv(100)) == (b"bye", b"")
    close(server, client)


@pytest.mark.parametrize("missing", [0, 1, 1000])
def test_truncation_is_an_error(missing: int) -> None:
    """The end of the socket without a close_notify is an error; complete data is not lost."""
    server, client = encrypted_pair()
    send_all(client, b"whole")
    with client._lock:
        client._machine.write(bytes(5000))
        data = client._outgoing.read()
    client._sock.sendall(data[: len(data) - missing] if missing else b"")
    client._sock.shutdown(socket.SHUT_WR)
    assert server.recv(3) == b"who"
    assert server.recv(100) == b"le"
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match="without saying so"):
            server.recv(100)
    close(server, client)


def test_garbage_after_the_handshake() -> None:
    """Bytes that are not TLS are an error of the connection."""
    server, client = encrypted_pair()
    send_all(client, b"whole")
    client._sock.sendall(b"garbage, garbage")
    assert server.recv(5) == b"whole"
    with pytest.raises(OSError):
        server.recv(100)
    close(server, client)


def test_the_end_after_a_full_socket() -> None:
    """The end is not sent before waiting data: it is requested again, and arrives last."""
    server, client = encrypted_pair()
    sent = fill(client)
    # The peer sees the end only together with the partly sent record.
    assert client.committed_bytes and not client.shutdown_write()

    received = bytearray()

    def read() -> None:
        while data := server.recv(64 * KIB):
            received.extend(data)

    together(lambda: end(client), read)
    assert len(received) == sent + 16 * KIB and not any(received)
    close(server, client)


def test_reading_continues_after_the_own_end() -> None:
    """After ending its own direction, a side reads to the peer's end, however much arrives."""
    server, client = encrypted_pair()
    end(client)
    assert server.recv(100) == b""

    def answer() -> None:
        send_all(server, bytes(MIB))
        end(server)

    assert together(lambda: recv_all(client), answer)[0] == b""
    close(server, client)


# -- TLS in both directions


def test_the_last_data_of_a_peer_that_does_not_read() -> None:
    """Received data is returned although TLS has bytes to send that the peer does not read."""
    sockets = socket.socketpair()
    server, client = tls_pair(sockets=sockets)
    shake_hands(server, client)
    fill(client)
    send_all(server, b"last words")
    sockets[0].shutdown(socket.SHUT_RD)
    assert client.recv(100) == b"last words"
    with pytest.raises(OSError):
        client.send(bytes(64 * KIB))
    close(server, client)


def test_reading_may_cause_sending() -> None:
    """Responses that TLS creates during a read are sent, even if no thread sends."""
    context = CA.issue_client("bob").client_config()
    context.post_handshake_auth = True
    asking = CA.issue().server_config(mutual=True)
    asking.verify_mode = ssl.CERT_OPTIONAL
    asking.post_handshake_auth = True
    server, client = tls_pair(asking, context)
    shake_hands(server, client)
    assert server.peer_certificate is None
    with server._lock:
        server._machine._sslobj.verify_client_post_handshake()
    send_all(server, b"who are you?")

    def be_client() -> None:
        assert client.recv(100) == b"who are you?"
        wait_until(lambda: server.peer_certificate)
        send_all(client, b"you know")

    assert together(lambda: server.recv(100), be_client)[0] == b"you know"
    close(server, client)


def test_data_does_not_overtake_pending_tls_bytes() -> None:
    """While TLS's own bytes wait for a full socket, no more data is encrypted."""
    server, client = encrypted_pair()
    while Transport.send(client, bytes(64 * KIB)):
        pass
    with client._lock:
        client._machine.write(b"stands for the answer to a key update")
    assert (client.send(b"data"), client.committed_bytes) == (0, 0)
    close(server, client)


def test_a_broken_socket_first_returns_what_it_accepted() -> None:
    """If it breaks between two records, the earlier ones count as sent; the next send raises."""

    class Breaking(TlsTransport):
        __slots__ = ()

        def _flush(self) -> bool:
            if next(flushes, None) is None:
                raise BrokenPipeError(errno.EPIPE, "broken pipe")
            return super()._flush()

    flushes = iter(range(2))

    server, client = encrypted_pair()
    client.__class__ = Breaking
    assert client.send(bytes(64 * KIB)) == 16 * KIB
    with pytest.raises(BrokenPipeError):
        client.send(bytes(48 * KIB))
    close(server, client)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 70_000), min_size=1, max_size=12),
    st.lists(st.integers(200, 9_000), min_size=1, max_size=5),
    st.integers(0, 70_000),
)
def test_repeated_sends_corrupt_nothing(chunks: list[int], reads: list[int], more: int) -> None:
    """Data arrives unchanged, however full sockets split it and however often it is sent again."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
    sender, receiver = tls_pair(sockets=(ours, theirs))
    shake_hands(sender, receiver)
    data = random.Random(1).randbytes(sum(chunks))

    def send() -> None:
        at = limit = 0
        for size in chunks:
            limit = min(len(data), limit + size)
            while at < limit:
                taken = sender.send(memoryview(data)[at:limit])
                at += taken
                if not taken:
                    sender.wait_writable()
                    # A repeated send begins with the same data, but may have more.
                    limit = min(len(data), limit + more)
        end(sender)

    def read() -> bytes:
        received = bytearray()
        for size in itertools.cycle(reads):
            piece = receiver.recv(size)
            received += piece
            if not piece:
                return bytes(received)
        raise AssertionError

    assert together(send, read)[1] == data
    close(sender, receiver)


def test_full_duplex() -> None:
    """Both ends send and receive concurrently with two threads each; every byte is checked."""
    server, client = encrypted_pair()
    total = MEGABYTES * 1_000_000
    # The length fits no record, buffer or chunk, so a misplaced byte makes a difference.
    length = 1_048_573
    patterns = [random.Random(seed).randbytes(length) * 2 for seed in (1, 2)]

    # Without the interpreter lock, threads cannot share a view (python/cpython#155606).
    def send(transport: Transport, data: bytes) -> None:
        pattern = memoryview(data)
        sizes = random.Random(3)
        at = 0
        while at < total:
            size = min(sizes.choice((1, 100, 5_000, 70_000, 300_000)), total - at)
            start = at % length
            send_all(transport, pattern[start : start + size])
            at += size

    def read(transport: Transport, expected: bytes) -> None:
        pattern = memoryview(expected)
        at = 0
        while at < total:
            data = transport.recv(64 * KIB)
            start = at % length
            assert data and pattern[start : start + len(data)] == data, f"after {at} bytes"
            at += len(data)

    started = time.perf_counter()
    together(
        lambda: send(server, patterns[0]),
        lambda: send(client, patterns[1]),
        lambda: read(client, patterns[0]),
        lambda: read(server, patterns[1]),
    )
    print(f"{MEGABYTES} MB each way in {time.perf_counter() - started:.1f} s")
    end(server)
    assert client.recv(1) == b""
    close(server, client)
