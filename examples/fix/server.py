"""A FIX acceptor: fills each order at once. Its sessions outlive connections, not the process."""

from __future__ import annotations

import itertools

import tao
from examples._shared import announce, arguments, plain_end
from examples.fix.messages import EXECUTION, HEARTBEAT, LOGON, PROTOCOL, Fix, register
from examples.fix.session import Session

NAME = "BROKER"

server = tao.Server(codec=PROTOCOL, queue_size=10_000)
sessions: dict[str, Session] = {}
executions = itertools.count(1)


def receive(ctx: tao.Context[Fix], conn: tao.Connection) -> None:
    message = ctx.message
    session: Session | None = conn.value("session")
    if message.message_number == LOGON:
        session = log_on(conn, message)
    if session is None:
        conn.close()  # the first message must be a Logon
    elif session.receive(conn, message):
        fill(session, conn, message.fields)


register(server.registry, receive)


def log_on(conn: tao.Connection, message: Fix) -> Session:
    """Find the session of a Logon, answer it, and begin with heartbeats."""
    client, interval = message.fields[49], message.fields[108]
    if message.fields.get(141) == "Y":
        sessions.pop(client, None)  # its numbers begin at 1 again
    session = sessions.setdefault(client, Session(NAME, client))
    conn.set_value("session", session)
    conn.name = client
    session.send(conn, LOGON, {98: 0, 108: interval})
    conn.run_every(float(interval), lambda due, conn: session.send(conn, HEARTBEAT, {}))
    return session


def fill(session: Session, conn: tao.Connection, order: dict[int, str]) -> None:
    """Report that an order is filled."""
    number = next(executions)
    report = {37: f"O{number}", 17: f"E{number}", 150: "F", 39: "2", 14: order[38], 151: 0}
    session.send(conn, EXECUTION, {**report, **{tag: order[tag] for tag in (11, 54, 55, 38)}})
    print(f"{conn.name}: {order[11]} {order[38]} {order[55]}", flush=True)


if __name__ == "__main__":
    options = arguments(__doc__, port=9878).parse_args()
    with plain_end():
        address = (options.host, options.port)
        server.serve_forever(address, handle_signals=True, ready=announce("examples.fix.client"))
        print("stopped")
