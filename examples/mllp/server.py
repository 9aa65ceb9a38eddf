"""An MLLP service: takes HL7 admissions, and acknowledges each message."""

from __future__ import annotations

import hl7

import tao
from examples._shared import run
from examples.mllp.messages import HL7
from tao import framing

server = tao.Server(codec=framing.presets.mllp(), heartbeat=None)
admitted: dict[str, str] = {}  # names by patient number


@server.handler(HL7)
def take(ctx: tao.Context[HL7], conn: tao.Connection) -> None:
    message = ctx.message.content
    conn.write(HL7(message.create_ack(answer(message))))


def answer(message: hl7.Message) -> str:
    """Return the acknowledgment code: accepted, error or rejected."""
    if str(message["MSH.F9.R1.C1"]) != "ADT":
        return "AR"
    try:
        admitted[str(message["PID.F3.R1.C1"])] = str(message["PID.F5"])
    except (LookupError, hl7.HL7Exception):
        return "AE"
    return "AA"


if __name__ == "__main__":
    run(server, __doc__, 2575, "mllp_send --port {port} --file message.hl7 127.0.0.1")
