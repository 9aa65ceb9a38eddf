"""A server that identifies its clients by their certificates (mutual TLS)."""

from __future__ import annotations

from pathlib import Path

import tao
from examples._shared import announce, arguments, plain_end
from examples.secure import certificates
from examples.secure.messages import SecretMessage


def identify(conn: tao.Connection) -> bool:
    """Name a connection after its certificate; refuse it without one."""
    subject = (conn.peer_certificate or {}).get("subject", ())
    names = [value for parts in subject for key, value in parts if key == "commonName"]
    if not names:
        return False
    conn.name = names[0]
    print(f"{conn.name} is connected, by {conn.tls_version}", flush=True)
    return True


server = tao.Server(on_connect=identify)


@server.handler(SecretMessage)
def answer(ctx: tao.Context[SecretMessage], conn: tao.Connection) -> None:
    conn.write(SecretMessage(f"{conn.name}, I know that it was you who said: {ctx.message.text}"))


if __name__ == "__main__":
    parser = arguments(__doc__, port=12345)
    parser.add_argument("--certs", type=Path, default=certificates.DIRECTORY, help="a directory")
    options = parser.parse_args()
    with plain_end():
        certificates.make(options.certs)
        print(f"certificates are in {options.certs}", flush=True)
        server.start((options.host, options.port), tls=certificates.of_server(options.certs))
        server.serve_forever(handle_signals=True, ready=announce("examples.secure.client"))
        print("stopped")
