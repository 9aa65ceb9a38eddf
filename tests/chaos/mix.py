"""The mix: clients that reconnect through faulty proxies, and an account of all messages."""

from __future__ import annotations

import itertools
import random
import struct
import threading
from collections import Counter, defaultdict
from typing import Any

from tao.client.client import ClientConn
from tao.connection.options.definitions import Readers, Reconnect
from tao.errors import TaoError, WouldBlock
from tao.server.server import Server
from tao.session.sessions import Sessions
from tao.testing.fault_proxy import FaultProxy, Faults
from tao.wire.message import Registry
from tests.support import PATIENCE, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

SIZES = (0, 1, 20, 500, 5_000, 70_000, 300_000)
SOON = Reconnect(initial=0.005, maximum=0.1)
# How many messages are sent at the end, without faults: they must arrive.
LAST = 20
# The idle timeout of both ends, in seconds.
IDLE = 0.5


class Parcel:
    """The message of the mix: its client, its number, and content that is derived from both."""

    message_number = 9

    def __init__(self, owner: int, index: int, size: int) -> None:
        self.owner, self.index, self.size = owner, index, size

    def serialize(self) -> bytes:
        head = struct.pack("<iqi", self.owner, self.index, self.size)
        pattern = struct.pack("<iq", self.owner, self.index)
        return head + (pattern * (self.size // 12 + 1))[: self.size]

    @classmethod
    def deserialize(cls, data: bytes) -> Parcel:
        parcel = cls(*struct.unpack_from("<iqi", data))
        if parcel.serialize() != data:
            raise ValueError(f"parcel {parcel.owner}/{parcel.index} is damaged")
        return parcel


class Sender:
    """A client that reconnects and writes continuously, and its proxy.

    Args:
        owner: its number.
        address: of the server.
        tls: whether the server uses TLS there.
        seed: of its messages and faults.
        session: whether it has a session, so that nothing may be lost.
    """

    def __init__(self, owner: int, address: Any, tls: bool, seed: int, session: bool) -> None:
        self.owner, self.tls, self.session = owner, tls, session
        self._chance = random.Random(f"{seed}-{owner}-messages")
        self._fate = random.Random(f"{seed}-{owner}-faults")
        self._weather = random.Random(f"{seed}-{owner}-weather")
        self.proxy = FaultProxy(address, plan=self._plan, seed=seed)
        self.accepted: int = 0
        self.calm = threading.Event()
        self.answers: dict[int, list[int]] = defaultdict(list)  # by connection
        self.damaged: list[str] = []
        registry = Registry()
        registry.register(Parcel.message_number, Parcel.deserialize, self._answered)
        self.client = ClientConn(
            self.proxy.address,
            registry=registry,
            reconnect=SOON,
            heartbeat=None,  # heartbeats would count among the messages
            idle_timeout=IDLE,
            write_timeout=IDLE,
            handshake_timeout=IDLE,
            queue_size=64,
            slow_consumer="raise" if session or owner % 4 < 2 else "drop_oldest",
            session="required" if session else False,
            readers="shared" if owner % 8 < 4 else "own",
            tls=CLIENT if tls else None,
            on_error=self._told,
        )

    def _answered(self, ctx: Any, conn: ClientConn) -> None:
        self.answers[conn.reconnects].append(ctx.message.index)

    def _told(self, conn: Any, error: BaseException) -> None:
        if "damaged" in str(error):
            self.damaged.append(str(error))

    def _plan(self, number: int) -> tuple[Faults, Faults]:
        """Return one or two faults for a connection."""
        if self.calm.is_set():
            return Faults(), Faults()
        chance = self._fate
        both = Faults(split=chance.choice((None, 3000, 100))), Faults()
        for faults in both:
            end = chance.choice(("cut_after", "reset_after", None, None))
            where = chance.choice((300, 10_000, 1_000_000))
            if end is not None:
                setattr(faults, end, chance.randrange(where))
            faults.delay = chance.choice((0, 0, 0, 0.001))
            if self.tls and chance.random() < 0.1:  # detectable only with TLS
                faults.corrupt_at = chance.randrange(where)
        return both

    def write(self, end: threading.Event) -> None:
        """Write until the end, at varying speed."""
        chance = self._chance
        while not end.is_set():
            for _ in range(chance.randrange(1, 40)):
                size = chance.choice(SIZES[: chance.randrange(1, len(SIZES) + 1)])
                try:
                    self.client.write(Parcel(self.owner, self.accepted, size), 0.05)
                    self.accepted += 1
                except WouldBlock:
                    break
            end.wait(chance.random() * 0.05)

    def rage(self, end: threading.Event) -> None:
        """From time to time, inject a fault into the proxy and all its connections."""
        chance, proxy = self._weather, self.proxy
        while not end.wait(chance.random() * 0.3):
            event = chance.choice(("cut", "reset", "refuse", "hang up", "silence", "stall", "slow"))
            if event == "cut":
                proxy.cut()
            elif event == "reset":
                proxy.reset()
            elif event in ("refuse", "hang up"):
                proxy.refuse(hang_up=event == "hang up")
                proxy.reset()
                end.wait(chance.random() * 0.2)
                proxy.accept()
            else:
                self._oppress(event, end)

    def _oppress(self, event: str, end: threading.Event) -> None:
        """Apply a fault to all connections for a while, then reset them.

        They cannot continue after swallowed data, because it is missing.
        """
        faults = {
            "silence": Faults(swallow=True),
            "stall": Faults(stall=True),
            "slow": Faults(rate=20_000),
        }[event]
        proxy = self.proxy
        plan, proxy.plan = proxy.plan, None
        proxy.to_server = proxy.to_client = faults
        proxy.reset()
        end.wait(self._weather.choice((0.05, 0.3, 2 * IDLE)))
        proxy.to_server, proxy.to_client, proxy.plan = Faults(), Faults(), plan
        proxy.reset()

    def finish(self) -> None:
        """Without faults: send queued messages and a few more, and close."""
        proxy, client = self.proxy, self.client
        self.calm.set()
        proxy.refuse()
        proxy.reset()
        try:
            wait_until(lambda: not proxy.connections)
            before = proxy.accepted
            proxy.accept()
            wait_until(lambda: proxy.accepted > before and client.connected)
            for _ in range(LAST):
                client.write(Parcel(self.owner, self.accepted, 100), PATIENCE)
                self.accepted += 1
            if self.session:
                wait_until(lambda: sum(map(len, self.answers.values())) >= self.accepted)
        except (AssertionError, TaoError) as error:
            self.damaged.append(f"client {self.owner} does not come back: {error!r}")
        client.close()


class Receiver:
    """The server of the mix; it replies to each parcel, and to some only after a while."""

    def __init__(self, readers: Readers, sessions: bool) -> None:
        self.got: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.damaged: list[str] = []
        registry = Registry()
        registry.handler(Parcel)(self._take)
        self.server = Server(
            registry=registry,
            heartbeat=IDLE / 4,
            idle_timeout=2 * IDLE,
            handshake_timeout=IDLE,
            drain_timeout=2 * IDLE,
            workers=4,
            readers=readers,
            slow_consumer="raise" if sessions else "drop_newest",
            sessions=Sessions(linger=10 * PATIENCE) if sessions else None,
            on_error=self._told,
        )
        self.plain = self.server.start(("127.0.0.1", 0))
        self.secure = self.server.start(("127.0.0.1", 0), tls=SERVER)

    def _take(self, ctx: Any, conn: Any) -> None:
        parcel = ctx.message
        self.got[parcel.owner][conn.net_id].append(parcel.index)
        if parcel.index % 97 == 0:
            ctx.wait(0.02)
        try:
            conn.write(Parcel(parcel.owner, parcel.index, parcel.size // 10))
        except TaoError:
            pass  # the peer has closed

    def _told(self, conn: Any, error: BaseException) -> None:
        if "damaged" in str(error):
            self.damaged.append(str(error))


def run(
    seconds: float, seed: int, senders: int, sessions: bool = False
) -> tuple[Counter[str], list[str]]:
    """Run the mix; return the totals, and the broken guarantees.

    Args:
        sessions: whether the clients have sessions, and each message is to arrive once.
    """
    receiver = Receiver("shared" if seed % 2 else "own", sessions)
    everyone = [
        Sender(owner, (receiver.plain, receiver.secure)[owner % 2], bool(owner % 2), seed, sessions)
        for owner in range(senders)
    ]
    for sender in everyone:
        sender.client.start(keep_trying=True)
    end = threading.Event()
    timer = threading.Timer(seconds, end.set)
    timer.start()
    acts = [act for sender in everyone for act in (sender.write, sender.rage)]
    together(*((lambda act=act: act(end)) for act in acts))
    timer.join()
    together(*(sender.finish for sender in everyone))
    report = receiver.server.stop(PATIENCE)
    for sender in everyone:
        sender.proxy.close()
    broken = [] if not report.threads else [f"threads of the server left: {report.threads}"]
    broken += [*receiver.damaged, *(text for sender in everyone for text in sender.damaged)]
    total: Counter[str] = Counter()
    for sender in everyone:
        total.update(_account(sender, receiver.got[sender.owner], broken))
    return total, broken


def _account(sender: Sender, got: dict[int, list[int]], broken: list[str]) -> Counter[str]:
    """Account for the messages of one client, and return broken guarantees."""
    counts = sender.client._core.counts()
    arrived = [index for net_id in sorted(got) for index in got[net_id]]
    unique = set(arrived)
    disordered = sum(b < a for a, b in itertools.pairwise(arrived))
    result = Counter(
        accepted=sender.accepted,
        sent=counts.messages_out,
        unsent=counts.unsent,
        dropped=counts.dropped,
        received=len(unique),
        lost=counts.messages_out - len(unique),
        duplicated=len(arrived) - len(unique),
        disordered=disordered,
        reconnects=sender.client.reconnects,
        answers=sum(map(len, sender.answers.values())),
    )
    who = f"client {sender.owner} ({'TLS' if sender.tls else 'plain'})"
    if counts.messages_out + counts.unsent + counts.dropped != sender.accepted:
        broken.append(f"{who}: the fates do not add up: {result}")
    for name in ("duplicated", "disordered"):
        if result[name]:
            broken.append(f"{who}: {result[name]} messages {name}")
    if result["lost"] < 0 or not unique <= set(range(sender.accepted)):
        broken.append(f"{who}: more was received than sent: {result}")
    if not unique >= set(range(sender.accepted - LAST, sender.accepted)):
        broken.append(f"{who}: the last messages did not arrive, and nothing was in their way")
    if sender.session and (arrived != list(range(sender.accepted)) or result["unsent"]):
        broken.append(f"{who}: not everything arrived: {result}")
    if sender.session and list(itertools.chain(*sender.answers.values())) != arrived:
        broken.append(f"{who}: not everything was answered: {result}")
    if not sender.client.wait_closed(PATIENCE):
        broken.append(f"{who} does not end")
    for answers in sender.answers.values():
        if answers != sorted(set(answers)) or not set(answers) <= unique:
            broken.append(f"{who}: answers out of order, twice, or to nothing: {answers[:10]}")
    return result
