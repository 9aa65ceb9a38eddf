"""``tao dev-cert``: the files that it writes, and the instructions that it prints."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

import tao
from tao.cli.main import main
from tests.support import wait_until

NAMES = ["ca.pem", "client-key.pem", "client.pem", "server-key.pem", "server.pem"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*options: str) -> int:
    return main(["dev-cert", *options])


def test_the_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes five files into a new directory; only the owner can read the keys."""
    assert make("--out", "deep/er") == 0
    made = sorted((here / "deep" / "er").iterdir())
    assert [path.name for path in made] == NAMES
    for path in made:
        assert (path.stat().st_mode & 0o777 == 0o600) == path.name.endswith("-key.pem")
    output, errors = capsys.readouterr()
    assert "--tls-cert deep/er/server.pem --tls-key deep/er/server-key.pem" in output
    assert errors == ""


def test_the_program_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """A server and a client made by the printed lines trust each other."""
    assert make() == 0
    text = capsys.readouterr().out.partition("the same in a program:")[2]
    first, *rest = text.strip().splitlines()
    with eval(first) as server:
        names = {"tao": tao, "address": ("localhost", server.start(("127.0.0.1", 0))[1])}
        with eval("".join(rest).strip(), names) as client:
            assert client.tls_version == "TLSv1.3"
            wait_until(lambda: server.connections)
            (conn,) = server.connections
            assert conn.peer_certificate["subject"] == ((("commonName", "client"),),)


def test_the_commands_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The options in the printed commands are valid and name existing files."""
    assert make("--out", "a dir", "--name", "::1", "gateway.test", "--client", "probe 7") == 0
    output = capsys.readouterr().out
    assert "for a server named ::1, gateway.test; valid for 30 days" in output
    assert "tao connect [::1]:12345 --tls --ca 'a dir/ca.pem'" in output
    files = set(re.findall(r"'(a dir/[a-z-]+\.pem)'", output))
    assert {Path(file).name for file in files} == set(NAMES)
    tao.load_tls_config("a dir/server.pem", "a dir/server-key.pem", client_ca="a dir/ca.pem")


def test_the_days(here: Path) -> None:
    """The certificates are valid for the given number of days."""
    assert make("--days", "3") == 0
    for name in ("ca.pem", "server.pem", "client.pem"):
        known = ssl._ssl._test_decode_cert(str(here / "certs" / name))  # type: ignore[attr-defined]
        begin, end = (ssl.cert_time_to_seconds(known[key]) for key in ("notBefore", "notAfter"))
        assert 3 * 86400 <= end - begin <= 3 * 86400 + 3600


def test_existing_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``--force``, no file is replaced, and no other file is written."""
    assert make() == 0
    (here / "certs" / "ca.pem").unlink()
    before = (here / "certs" / "server.pem").read_bytes()
    capsys.readouterr()
    assert make() == 1
    output, errors = capsys.readouterr()
    assert output == "" and "certs already has server.pem, server-key.pem, client.pem" in errors
    assert errors.endswith("client-key.pem; --force replaces them\n")
    assert (here / "certs" / "server.pem").read_bytes() == before
    assert not (here / "certs" / "ca.pem").exists()
    assert make("--force") == 0
    assert (here / "certs" / "server.pem").read_bytes() != before


def test_a_file_instead_of_a_directory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of writing is reported in one line."""
    (here / "certs").write_text("a file", encoding="utf-8")
    assert make() == 1
    assert capsys.readouterr().err.endswith("tao: certs: file exists\n")


def test_an_invalid_directory_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no file can have is reported in one line."""
    assert main(["dev-cert", "--out", "9" * 400]) == 1
    errors = capsys.readouterr().err
    assert "file name too long" in errors and errors.count("\n") == 1


def test_a_client_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that a certificate cannot contain is a wrong call."""
    assert make("--client", "x" * 65) == 2
    assert capsys.readouterr().err.count("\n") == 1
