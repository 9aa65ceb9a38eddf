"""``tao dev-cert``: the files it writes, and that what it says about them is true."""

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
    """Five, in a new directory; a key can be read by its owner only."""
    assert make("--out", "deep/er") == 0
    made = sorted((here / "deep" / "er").iterdir())
    assert [path.name for path in made] == NAMES
    for path in made:
        assert (path.stat().st_mode & 0o777 == 0o600) == path.name.endswith("-key.pem")
    output, errors = capsys.readouterr()
    assert "--tls-cert deep/er/server.pem --tls-key deep/er/server-key.pem" in output
    assert errors == ""


def test_the_program_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Server and client of these lines trust each other."""
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
    """Their options name files that can be used so."""
    assert make("--out", "a dir", "--name", "::1", "gateway.test", "--client", "probe 7") == 0
    output = capsys.readouterr().out
    assert "for a server called ::1, gateway.test; valid for 30 days" in output
    assert "tao connect [::1]:12345 --tls --ca 'a dir/ca.pem'" in output
    files = set(re.findall(r"'(a dir/[a-z-]+\.pem)'", output))
    assert {Path(file).name for file in files} == set(NAMES)
    tao.load_tls_config("a dir/server.pem", "a dir/server-key.pem", client_ca="a dir/ca.pem")


def test_the_days(here: Path) -> None:
    """They are valid as long as told."""
    assert make("--days", "3") == 0
    for name in ("ca.pem", "server.pem", "client.pem"):
        known = ssl._ssl._test_decode_cert(str(here / "certs" / name))  # type: ignore[attr-defined]
        begin, end = (ssl.cert_time_to_seconds(known[key]) for key in ("notBefore", "notAfter"))
        assert 3 * 86400 <= end - begin <= 3 * 86400 + 3600


def test_files_that_are_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is replaced, and none written beside them, unless that is wanted."""
    assert make() == 0
    (here / "certs" / "ca.pem").unlink()
    before = (here / "certs" / "server.pem").read_bytes()
    capsys.readouterr()
    assert make() == 1
    output, errors = capsys.readouterr()
    assert output == "" and "certs has server.pem, server-key.pem, client.pem" in errors
    assert errors.endswith("already; --force replaces them\n")
    assert (here / "certs" / "server.pem").read_bytes() == before
    assert not (here / "certs" / "ca.pem").exists()
    assert make("--force") == 0
    assert (here / "certs" / "server.pem").read_bytes() != before


def test_a_directory_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be written is told in a line."""
    (here / "certs").write_text("a file", encoding="utf-8")
    assert make() == 1
    assert capsys.readouterr().err.endswith("tao: certs: file exists\n")


def test_a_directory_that_cannot_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor one with a name that no file can have."""
    assert main(["dev-cert", "--out", "9" * 400]) == 1
    errors = capsys.readouterr().err
    assert "file name too long" in errors and errors.count("\n") == 1


def test_a_client_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no certificate can have is a wrong call."""
    assert make("--client", "x" * 65) == 2
    assert capsys.readouterr().err.count("\n") == 1
