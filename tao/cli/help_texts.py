"""What ``--help`` says about each command, before and after the list of its options."""

from __future__ import annotations

from typing import Final

__all__ = ["DESCRIPTIONS", "EPILOGS", "MAIN_EPILOG"]

_STATUS: Final = """\
exit status:
  0  success
  1  failed: {failed}
  2  wrong usage, explained in one line
"""
_INTERRUPTED: Final = "130  ended by Ctrl-C\n"

#: Of the whole command line.
MAIN_EPILOG: Final = """\
tao COMMAND --help explains a command, with examples. If tao is not on the PATH, write
python -m tao instead.

exit status: 0 success, 1 failed, 2 wrong usage, 130 ended by Ctrl-C (but 0 for a server
that Ctrl-C shut down gracefully)
"""

_SERVE: Final = (
    """\
MODULE:SERVER names a module and a tao.Server in it, as "package.module:server" or
"module:object.attribute". It may also name a function that takes no arguments and
returns a server. Without :SERVER the name is "server". The module is searched for in
the current directory too. An option that is not given keeps the module's value.

examples:
  tao serve examples.chat.server:server --port 12345
  tao serve examples.chat.server --reload --log-level debug
  tao serve gateway:make_server --tls-cert cert.pem --tls-key key.pem
  tao serve gateway --port 7000 --processes 4
  tao serve gateway --host 0.0.0.0 --monitor 8080 --workers 50 --idle-timeout 90

With --processes N, a supervisor starts N processes that share the listening sockets, and
starts another when one ends. SIGHUP replaces them without refusing a connection.

Ctrl-C or SIGTERM shuts the server down gracefully: received messages are handled, and
written messages are sent. A second one stops it at once.

"""
    + _STATUS.format(failed="stopped before all work was finished")
    + "130  stopped at once by a second Ctrl-C\n"
)

_CONNECT: Final = (
    """\
A line is a message: its number, a space, and the value.
  1 hello there           the text, as UTF-8
  7 hex:00ff10            bytes
  2 json:{"a": 1}         JSON, without spaces
  1 text:hex:00           the text "hex:00"
  3                       no value
"help" shows this, "quit" or Ctrl-D ends; lines that begin with # are skipped.
A received message is shown as  < NUMBER (SIZE bytes) VALUE;  a value that is not
printable text is shown as hex:.... Heartbeats are sent while nothing else is sent, so
that the server keeps the connection open.

examples:
  tao connect 127.0.0.1:12345
  tao connect gateway.example.org:7000 --tls --ca ca.pem --messages gateway.messages
  tao connect 192.168.0.7:502 --codec modbus_tcp --header unit=1
  echo '1 hello' | tao connect :12345 --replies 1 --wait 5

"""
    + _STATUS.format(failed="no connection, a lost one, or fewer --replies than expected")
    + _INTERRUPTED
)

_BENCH: Final = (
    """\
The server must answer each message with one message, as an echo server does. Each
connection keeps --window messages in flight: for each reply, it sends one more. The
result is the number of replies per second and the latency of each, from the send call
until the reply has been read; with a window above 1, that includes waiting behind the
other messages. Heartbeats and messages that arrive after --duration are not counted.

Limits: the load comes from a single Python thread, which can itself be the bottleneck;
the result shows its share of a CPU. On the same machine it takes CPU time from the
server. Latencies are accurate to 3 %. The load waits for replies before it sends more, so
the result does not show how latency grows when clients do not wait.

examples:
  tao bench 127.0.0.1:12345
  tao bench :12345 --connections 100 --window 1 --duration 10
  tao bench :12345 --size 4096 --tls --ca ca.pem --json > result.json
  tao bench :5020 --codec modbus_tcp --header unit=1 --number 3 --size 4

"""
    + _STATUS.format(failed="no connection, a lost one, or no reply for 5 s")
    + _INTERRUPTED
)

_TOP: Final = (
    """\
HOST:PORT is the address of a monitor: tao.monitor_on(PORT), or tao serve --monitor PORT.
The connections that most need attention come first. IN, OUT and HANDLED are messages per
second since the previous frame; in the first frame, since the start. QUEUE counts the
messages that wait to be sent, PENDING those that wait for their handler. RUNNING is the
number of the message being handled, FOR how long its handler has been running, HEARD the
time since something was received.

examples:
  tao top :8080
  tao top 127.0.0.1:8080 --interval 0.5 --sort running
  tao top :8080 --once

"""
    + _STATUS.format(failed="the monitor cannot be reached at the start")
    + _INTERRUPTED
)

_FRAME: Final = """\
Each line shows the offset, the bytes, the name and the value of a part. What is wrong
begins with "! ". Spaces and colons among the digits are ignored.

MODULE:FRAME names a module and a codec in it, or a function that returns one, as
"gateway.protocol:frame". Presets are in tao.framing.presets.

examples:
  tao frame modbus_tcp 0001 0000 0006 11 03 006b 0003
  tao frame gateway.protocol:frame 78:78:05:01:00:01:d9:dc:0d:0a

""" + _STATUS.format(failed="the bytes are not one valid frame")

_DEV_CERT: Final = """\
Writes ca.pem, server.pem, server-key.pem, client.pem and client-key.pem, all new. The key
of the authority itself is not stored, so no further certificates can be issued. Only the
owner can read the keys. The certificates are not for production.

examples:
  tao dev-cert
  tao dev-cert --out certs --name gateway.test 192.168.0.7 --days 7

""" + _STATUS.format(failed="a file cannot be written, or exists and --force is not given")

#: Of each command.
DESCRIPTIONS: Final = {
    "serve": "Start the server that a module defines, and serve until it is stopped.",
    "connect": "Send messages to a server, and show what it sends.",
    "bench": "Measure how many messages per second an echo server answers, and how fast.",
    "top": "Show the servers, clients and connections of a process with a monitor, live.",
    "frame": "Print an annotated dump of a frame of a protocol.",
    "dev-cert": "Make a certificate authority, and certificates for a server and a client.",
}
EPILOGS: Final = {
    "serve": _SERVE,
    "connect": _CONNECT,
    "bench": _BENCH,
    "top": _TOP,
    "frame": _FRAME,
    "dev-cert": _DEV_CERT,
}
