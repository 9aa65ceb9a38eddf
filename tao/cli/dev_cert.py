"""``tao dev-cert``: writes certificates for trying TLS, and shows how to use them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Final

from tao.cli.common import DONE, Failed, WrongCall, reason_of, say
from tao.safe_text import printable
from tao.transport.addresses import address_text
from tao.transport.certificates import DevelopmentCA

__all__ = ["run"]

_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_FILES: Final = ("ca.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem")


def run(options: argparse.Namespace) -> int:
    """Write the files, explain them, and return the exit status."""
    names, days = tuple(options.name or _NAMES), options.days
    authority = DevelopmentCA(days=days)
    try:
        server = authority.issue(*names, days=days)
        client = authority.issue_client(options.client, days=days)
    except ValueError as error:
        raise WrongCall(str(error)) from error
    directory = Path(options.out)
    ca, server_file, server_key, client_file, client_key = (directory / name for name in _FILES)
    try:
        there = [name for name in _FILES if (directory / name).exists()]
        if there and not options.force:
            raise Failed(f"{directory} already has {', '.join(there)}; --force replaces them")
        directory.mkdir(parents=True, exist_ok=True)
        server.write(server_file, server_key)
        client.write(client_file, client_key)
        ca.write_bytes(authority.certificate)
    except OSError as error:
        raise Failed(reason_of(error)) from error
    _explain(directory, names, days)
    return DONE


def _explain(directory: Path, names: tuple[str, ...], days: float) -> None:
    paths = [str(directory / name) for name in _FILES]
    ca, server, server_key, client, client_key = (shlex.quote(path) for path in paths)
    address = address_text((names[0], 12345))
    say(f"{printable(str(directory))}: {', '.join(_FILES)}")
    say(f"for a server named {', '.join(names)}; valid for {days:g} days")
    say("")
    say("a server, and a client that trusts it:")
    say(f"  tao serve MODULE:SERVER --tls-cert {server} --tls-key {server_key}")
    say(f"  tao connect {address} --tls --ca {ca}")
    say("a server that accepts only clients with a certificate, and such a client:")
    say(
        f"  tao serve MODULE:SERVER --tls-cert {server} --tls-key {server_key} --tls-client-ca {ca}"
    )
    say(f"  tao connect {address} --tls --ca {ca} --cert {client} --key {client_key}")
    say("the same in a program:")
    ca, server, server_key, client, client_key = map(repr, paths)
    say(f"  tao.Server(tls=tao.load_tls_config({server}, {server_key}, client_ca={ca}))")
    say("  tao.ClientConn(address, tls=tao.load_client_tls_config(")
    say(f"      ca={ca}, certfile={client}, keyfile={client_key}))")
