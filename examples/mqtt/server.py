"""An MQTT 3.1.1 broker of QoS 0, with wills, retained messages and keep-alive."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import tao
from examples._shared import run
from examples.mqtt import packets as mqtt
from tao import framing

retained: dict[str, bytes] = {}  # by topic
patterns: dict[tao.Connection, set[str]] = {}  # subscribed to


def publish(topic: str, payload: bytes, retain: bool) -> None:
    if retain and payload:
        retained[topic] = payload
    elif retain:
        retained.pop(topic, None)
    for conn, wanted in list(patterns.items()):
        if any(mqtt.matches(each, topic) for each in list(wanted)):
            send(conn, mqtt.Publish(topic, payload))


def send(conn: tao.Connection, packet: tao.StructMessage, flags: int = 0) -> None:
    with suppress(tao.WouldBlock, tao.ConnectionClosed):  # QoS 0: at most once
        conn.write(packet, header={"flags": flags})


def gone(conn: tao.Connection) -> None:
    """Publish the will of a client that has not said goodbye."""
    patterns.pop(conn, None)
    if getattr(conn.state, "will", None) is not None:
        publish(*conn.state.will)


server = tao.Server(codec=framing.presets.mqtt(), heartbeat=None, on_close=gone)


@server.use
def checked(ctx: tao.Context[Any], conn: tao.Connection, call_next: Any) -> None:
    """Close the connection of a client that does not begin with CONNECT, or sends nonsense."""
    try:
        if isinstance(ctx.message, mqtt.Connect) == (conn in patterns):
            raise tao.BadData("a client sends CONNECT first, and once")
        call_next(ctx, conn)
    except tao.BadData as error:
        conn.close(str(error))


@server.handler(mqtt.Connect)
def connect(ctx: tao.Context[mqtt.Connect], conn: tao.Connection) -> None:
    packet = ctx.message
    if (packet.protocol, packet.level) != ("MQTT", 4):
        send(conn, mqtt.ConnAck(False, 1))
        raise tao.BadData("only MQTT 3.1.1 is supported")
    patterns[conn] = set()
    conn.name, conn.state.will = packet.client_id, packet.will()
    if packet.keep_alive:
        conn.set_keepalive(idle_timeout=1.5 * packet.keep_alive)
    send(conn, mqtt.ConnAck(False, 0))


@server.handler(mqtt.Publish)
def take(ctx: tao.Context[mqtt.Publish], conn: tao.Connection) -> None:
    if ctx.header.flags & 6:
        raise tao.BadData("only QoS 0 is supported")
    publish(ctx.message.topic, ctx.message.payload, bool(ctx.header.flags & 1))


@server.handler(mqtt.Subscribe)
def subscribe(ctx: tao.Context[mqtt.Subscribe], conn: tao.Connection) -> None:
    patterns[conn].update(wanted := [each.pattern for each in ctx.message.filters])
    send(conn, mqtt.SubAck(ctx.message.packet_id, bytes(len(wanted))))
    for topic, payload in list(retained.items()):
        if any(mqtt.matches(each, topic) for each in wanted):
            send(conn, mqtt.Publish(topic, payload), flags=1)


@server.handler(mqtt.Unsubscribe)
def unsubscribe(ctx: tao.Context[mqtt.Unsubscribe], conn: tao.Connection) -> None:
    patterns[conn].difference_update(ctx.message.patterns)
    send(conn, mqtt.UnsubAck(ctx.message.packet_id))


@server.handler(mqtt.PingReq)
def ping(ctx: tao.Context[mqtt.PingReq], conn: tao.Connection) -> None:
    send(conn, mqtt.PingResp())


@server.handler(mqtt.Disconnect)
def leave(ctx: tao.Context[mqtt.Disconnect], conn: tao.Connection) -> None:
    conn.state.will = None
    conn.close()


if __name__ == "__main__":
    run(server, __doc__, 1883, "mosquitto_sub -p {port} -t '#'")
