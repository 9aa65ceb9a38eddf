"""A client, the processes of a server, and how one reaches the other; see ``side.py``."""

from __future__ import annotations

from collections.abc import Callable

from tao.errors import BadData
from tao.session import frames
from tao.session.agreement import Opening, Reception
from tao.session.frames import Hello, Welcome, welcome_frame
from tao.session.session import Session
from tao.session.sessions import Sessions
from tests.session.side import LIMIT, Link, Side

#: How many attempts to connect, and how many sessions may linger.
ATTEMPTS, MOST_LOST = 3, 2

#: Changes the value of a frame on its way.
Skew = Callable[[bytes], bytes]


class Attempt:
    """A connection that the client begins, between its first byte and the last of the server.

    Args:
        hello: what the client wants; of a session with this secret.
        skews: what becomes of the values of HELLO and WELCOME.
    """

    def __init__(self, count: int, hello: Hello, secret: bytes, skews: dict[int, Skew]) -> None:
        self.link = Link()
        self.hello = hello
        self.opening = Opening(count, 0, count, hello, secret)
        self.reception = Reception(count, 0, count.to_bytes(16, "little"))
        self.skews = skews
        self.said = b""  # to the server, all of it
        self.answered = False
        self.over = False  # nothing more comes of it, at one end or the other

    def step(self, world: World, most: int) -> None:
        """Bring some bytes to the other end, in either direction."""
        client, server, to = self.opening, self.reception, self.link.to
        said = self._skewed(frames.HELLO, client.output)
        self.said += said
        to["server"] += said
        to["client"] += server.output
        client.output = server.output = b""
        try:
            for end, name in ((server, "server"), (client, "client")):
                count = min(most, end.wanted, len(to[name]))
                if count and not end.over:
                    data = bytes(to[name][:count])
                    del to[name][:count]
                    end.feed(data)
                if server.over and server.hello is not None and not self.answered:
                    self.answered = True
                    self._answer(world)
        except BadData:
            assert self.skews
            self.over = True
        if client.over and client.welcome is not None:
            self.over = True
            world.answered(self)

    def _answer(self, world: World) -> None:
        welcome = world.join(self.reception, self.link)
        if welcome is None:
            self.over = True
        else:
            self.link.to["client"] += self._skewed(frames.WELCOME, welcome_frame(welcome))

    def _skewed(self, kind: int, data: bytes) -> bytes:
        skew, head = self.skews.get(kind), kind.to_bytes(4, "little", signed=True)
        if skew is None or not data.startswith(head):
            return data
        value = skew(data[8:])
        return head + len(value).to_bytes(4, "little") + value


class World:
    """The client and all that it has to do with."""

    def __init__(self) -> None:
        self.table = Sessions(retain_bytes=LIMIT, maximum=MOST_LOST)
        # The server's sides that live, by their sessions; and all that there ever were, of both.
        self.living: dict[bytes, Side] = {}
        self.ever: dict[bytes, dict[str, Side]] = {}
        self.client: Side | None = None
        self.current: bytes = b""  # the session that the client has or had last
        self.written = 0  # by the client
        self.unsent: list[int] = []  # what it has written while there was no session
        self.wish, self.asked = b"", 0
        self.attempts: list[Attempt] = []
        self.said: list[bytes] = []  # what was said on each connection that the client has begun
        self.count = 0
        self.refuses: set[str] = set()  # the ends whose on_resume refuses next
        self.won: dict[bytes, int] = {}  # the attempt that has resumed a session last

    def side(self, name: str) -> Side | None:
        """Return the client's side, or that of the server that belongs to it."""
        return self.client if name == "client" else self.living.get(self.current)

    def write(self, name: str) -> None:
        side = self.side(name)
        if name == "client":
            value, self.written = self.written, self.written + 1
            if side is None:
                self.unsent.append(value)
                return
        elif side is not None:
            value = len(side.written)
        if side is not None:
            side.write(value)

    # -- the client

    def dial(self, skews: dict[int, Skew] | None = None) -> Attempt:
        """Begin an attempt. The server may still get what earlier ones have said."""
        self.count += 1
        client = self.client
        if client is None:
            self.wish = self.wish or self.count.to_bytes(16, "little")
            self.asked += 1
            hello, secret = Hello(wish=self.wish, attempt=self.asked), b""
        else:
            if client.link is not None:
                client.lose_link()
            session, secret = client.session, client.session.secret
            session.attempt += 1
            received, first = session.incoming.restart(), session.outgoing.acknowledged
            hello = Hello(session.session_id, session.attempt, received, first)
        attempt = Attempt(self.count, hello, secret, skews or {})
        self.attempts.append(attempt)
        return attempt

    def step(self, attempt: Attempt, most: int) -> None:
        attempt.step(self, most)
        if attempt.over:
            self.drop(attempt)

    def drop(self, attempt: Attempt) -> None:
        if attempt in self.attempts:
            self.attempts.remove(attempt)
            if attempt.said:
                self.said.append(attempt.said)

    def connect(self, skews: dict[int, Skew] | None = None) -> None:
        """Make an attempt that succeeds, unless it is too late for it, or it is skewed."""
        attempt = self.dial(skews)
        for _ in range(20):
            if attempt in self.attempts:
                self.step(attempt, 1000)

    def answered(self, attempt: Attempt) -> None:
        """Take the server's last word, if the client still waits for it."""
        welcome, client = attempt.opening.welcome, self.client
        assert welcome is not None
        if client is None:
            if attempt.hello.wish == self.wish and attempt.hello.attempt == self.asked:
                self._begin(welcome, attempt.link)
            return
        session = client.session
        mine = attempt.hello.session_id == session.session_id
        if not mine or attempt.hello.attempt != session.attempt:
            return
        if welcome.kind == frames.REFUSED:
            self.lose_client()
            return
        client.attach(attempt.link, welcome.received)
        if "client" in self.refuses:
            self.refuses.discard("client")
            self.lose_client()

    def _begin(self, welcome: Welcome, link: Link) -> None:
        self.wish = b""
        if welcome.kind != frames.NEW:
            return
        session = Session(welcome.session_id, welcome.secret, LIMIT)
        self.client, self.unsent = Side(session, link, self.unsent), []
        self.current = session.session_id
        self.ever.setdefault(self.current, {})["client"] = self.client

    def lose_client(self) -> None:
        """The client's session ends: it lingers no longer, or either end refuses to go on."""
        client = self.client
        if client is not None:
            client.end()
            self.client, self.unsent = None, client.written[client.sent :]

    # -- the server

    def join(self, reception: Reception, link: Link) -> Welcome | None:
        """Answer a HELLO; None: the connection is closed."""
        hello, table = reception.hello, self.table
        assert hello is not None
        if hello.session_id:
            return self._resume(reception, hello, link)
        session = table.new(None, hello.wish, hello.attempt)
        outdated = table.grant(session)
        for each in outdated:
            # The client has never got it, or has one already that it has asked for later.
            assert self.client is None or each.session_id != self.client.session.session_id
            self.end(each)
        if session in outdated:
            return None
        side = self.living[session.session_id] = Side(session, link, [])
        self.ever.setdefault(session.session_id, {})["server"] = side
        return Welcome(frames.NEW, 60, session.session_id, 0, session.secret)

    def _resume(self, reception: Reception, hello: Hello, link: Link) -> Welcome:
        session = self.table.find(hello.session_id)
        if session is None or not reception.proves(session.secret):
            return Welcome(frames.REFUSED, text="there is no such session")
        if not session.claim(hello.attempt):
            return Welcome(frames.REFUSED, text="another attempt was faster")
        assert hello.attempt > self.won.get(hello.session_id, 0)
        self.won[hello.session_id] = hello.attempt
        side = self.living[session.session_id]
        side.lose_link()
        assert session.can_resume(hello.received, hello.first)
        if "server" in self.refuses:
            self.refuses.discard("server")
            self.end(session)
            return Welcome(frames.REFUSED, text="refused")
        self.table.resumed(session)
        side.attach(link, hello.received)
        return reception.resumed(session.secret, session.incoming.decoded, 60)

    def lose_at_server(self, side: Side) -> None:
        """The server notices that a link is lost; if too many sessions linger, the first end."""
        side.lose_link()
        for each in self.table.await_client(side.session, "host"):
            self.end(each)

    def end(self, session: Session) -> None:
        """A session is lost at the server."""
        self.table.forget(session)
        side = self.living.pop(session.session_id, None)
        if side is not None:
            side.end()

    def restart(self) -> None:
        """The server's process ends, and another one takes its place."""
        self.table = Sessions(retain_bytes=LIMIT, maximum=MOST_LOST)
        self.living.clear()
        for attempt in list(self.attempts):
            self.drop(attempt)
        if self.client is not None and self.client.link is not None:
            self.client.link.cut = True

    def move(self) -> None:
        """The session goes on in another process, with those that the new one has."""
        side = self.living.get(self.current)
        if side is not None:
            before = side.session
            self.table.forget(before)
            session = side.move()
            self.table.adopt(session)
            assert self.table.grant(session) == []
            self.table.await_client(session, "host")

    def replay(self, said: bytes) -> None:
        """A connection says what another has said before; nobody is at its other end."""
        self.count += 1
        reception = Reception(self.count, 0, self.count.to_bytes(16, "little"))
        link = Link()
        try:
            while said and not reception.over:
                count = reception.wanted
                reception.feed(said[:count])
                said = said[count:]
        except BadData:
            pass  # it was skewed
        if reception.hello is not None:
            welcome = self.join(reception, link)
            assert welcome is None or welcome.kind != frames.RESUMED
        link.cut = True

    # -- the links

    def send(self, name: str, most: int, committed: int = 0) -> None:
        """The kernel takes some bytes; those into a link that was cut are gone."""
        side = self.side(name)
        if side is not None and side.link is not None:
            data = side.send(most, committed)
            if not side.link.cut:
                side.link.to["server" if name == "client" else "client"] += data

    def receive(self, name: str, most: int) -> None:
        side = self.side(name)
        if side is not None and side.link is not None:
            data = bytes(side.link.to[name][:most])
            del side.link.to[name][:most]
            if data:
                side.receive(data)

    def cut(self, keep: int) -> None:
        """Only some of what is on its way arrives; neither end knows that yet."""
        for name in ("client", "server"):
            side = self.side(name)
            if side is not None and side.link is not None:
                side.link.cut = True
                for on_its_way in side.link.to.values():
                    del on_its_way[keep:]

    def notice(self, name: str) -> None:
        """One end notices that links were cut; the other may never do."""
        if name == "client":
            client = self.client
            if client is not None and (link := client.link) and link.cut and not link.to["client"]:
                client.lose_link()
            return
        for side in list(self.living.values()):
            link = side.link
            if link is not None and link.cut and not link.to["server"]:
                self.lose_at_server(side)

    def expire(self) -> None:
        """The sessions that linger at the server are not resumed in time."""
        for side in list(self.living.values()):
            if side.link is None:
                self.end(side.session)

    # -- the comparison

    def check(self) -> None:
        for sides in self.ever.values():
            client, server = sides.get("client"), sides.get("server")
            if client is not None:
                client.check(server)
            if server is not None:
                server.check(client)
        assert len(self.table) == len(self.living)
        assert self.table.lingering == sum(side.link is None for side in self.living.values())

    @property
    def joined(self) -> bool:
        """Whether a sound link joins both ends."""
        client, server = self.side("client"), self.side("server")
        if client is None or server is None or client.link is None:
            return False
        return client.link is server.link and not client.link.cut

    def settle(self) -> None:
        """With a last attempt and a sound link, everything arrives."""
        self.refuses.clear()
        for attempt in list(self.attempts):
            self.drop(attempt)
        for _ in range(3):  # the session may not be there any more, which the client has to learn
            if not self.joined:
                self.connect()
        client, server = self.side("client"), self.side("server")
        assert client is not None and server is not None and self.joined
        for _ in range(1000):
            for name in ("client", "server"):
                self.send(name, 1000)
                self.receive("server" if name == "client" else "client", 1000)
                side = self.side(name)
                assert side is not None
                side.handle(1000)
                side.acknowledge()
            if all(not each.waiting and each.session.outgoing.idle for each in (client, server)):
                break
        self.check()
        assert server.handled == client.written and client.handled == server.written
        assert not client.uncertain() and not server.uncertain()
        self.check_fates()

    def check_fates(self) -> None:
        """Each message of the client's was handled once, or the client was told."""
        handled: list[int] = []
        told: set[int] = set()
        for sides in self.ever.values():
            if "server" in sides:
                handled += sides["server"].handled
            if "client" in sides:
                told.update(sides["client"].told or ())
        assert len(set(handled)) == len(handled)
        assert set(handled) | told == set(range(self.written))
