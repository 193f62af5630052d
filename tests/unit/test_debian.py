"""Packages come from the machine's own Debian mirror, whole or not at all, and once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kiln import errors
from kiln.upstream import debian
from kiln.upstream.debian import Source

if TYPE_CHECKING:
    from pathlib import Path

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"

DEB822 = f"""\
# the archive
Types: deb deb-src
# an old snapshot
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {KEY}

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
Signed-By: {KEY}

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.test/debian
Suites: bookworm
Components: main
"""


def source(uri: str, *suites: str, key: str = "", components: tuple[str, ...] = ("main",)) -> Source:
    return Source(uri=uri, suites=suites, components=components, signed_by=key)


ARCHIVE = source("http://mirror.test/debian", "bookworm", "bookworm-updates", key=KEY, components=("main", "contrib"))
SECURITY = source("http://mirror.test/debian-security", "bookworm-security", key=KEY)


def test_deb822_leaves_out_what_is_disabled_or_source_only() -> None:
    assert debian.parse_deb822(DEB822) == (ARCHIVE, SECURITY)


def test_deb822_keeps_a_key_block() -> None:
    block = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: http://a.test/\nSuites: sid\nComponents: main\nSigned-By: {block}\n"
    (parsed,) = debian.parse_deb822(text)
    assert parsed.signed_by == block
    assert debian.parse_deb822(debian.private_sources((parsed,))) == (parsed,)


def test_one_line_sources() -> None:
    text = f"""\
# deb http://off.test/debian bookworm main
deb [arch=amd64 signed-by={KEY}] http://mirror.test/debian bookworm main contrib  # ours
deb-src http://mirror.test/debian bookworm main
deb http://mirror.test/debian bookworm-updates main
"""
    assert debian.parse_one_line(text) == (
        source("http://mirror.test/debian", "bookworm", key=KEY, components=("main", "contrib")),
        source("http://mirror.test/debian", "bookworm-updates"),
    )


def test_a_suite_comes_with_its_updates_and_security() -> None:
    assert debian.sources_for("bookworm", (SECURITY, ARCHIVE)) == (
        source("http://mirror.test/debian", "bookworm", key=KEY),
        source("http://mirror.test/debian", "bookworm-updates", key=KEY),
        source("http://mirror.test/debian-security", "bookworm-security", key=KEY),
    )


def test_another_suite_comes_from_the_same_mirror() -> None:
    assert debian.sources_for("sid", (SECURITY, ARCHIVE)) == (source("http://mirror.test/debian", "sid", key=KEY),)


def test_others_that_use_debian_suite_names_are_not_the_archive() -> None:
    others = (
        source("http://vendor.test/", "bookworm", key="/etc/apt/keyrings/vendor.gpg"),
        source("http://docker.test/linux/debian", "bookworm", components=("stable",)),
        source("http://pg.test/", "bookworm-pgdg"),
        source("cdrom:[Debian]/", "bookworm"),
        SECURITY,
    )
    assert debian.sources_for("sid", (*others, ARCHIVE))[0].uri == ARCHIVE.uri
    with pytest.raises(errors.Missing, match="no entry for the Debian archive") as caught:
        debian.sources_for("sid", others)
    assert "Suites: sid" in caught.value.hint


def test_a_corporate_copy_with_its_own_key_is_the_archive() -> None:
    copy = source("http://corp.test/deb", "bookworm", "bookworm-updates", key="/etc/apt/keyrings/corp.gpg")
    assert debian.sources_for("sid", (copy,))[0].signed_by == copy.signed_by


def test_only_sid_may_be_past_its_date() -> None:
    assert debian.private_sources((source("http://mirror.test/debian", "sid", key=KEY), SECURITY)) == (
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: sid\nComponents: main\n"
        f"Check-Valid-Until: no\nSigned-By: {KEY}\n\n"
        "Types: deb\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\nComponents: main\n"
        f"Signed-By: {KEY}\n"
    )


def test_the_private_state_takes_acquire_settings_and_nothing_else(tmp_path: Path) -> None:
    paths = {name: f"/x/{name}" for name in ("TRUSTED", "TRUSTEDPARTS", "NETRC", "NETRCPARTS")}
    config = debian.private_config(tmp_path, acquire=('Acquire::http::Proxy "http://proxy.test";',), paths=paths)
    assert config.startswith('Acquire::http::Proxy "http://proxy.test";\n')
    assert f'Dir::State "{tmp_path}/state";' in config
    assert 'Dir::Etc::parts "/dev/null";' in config


APT_CONFIG = """\
#!/bin/sh
if [ "$1" = dump ]; then echo 'Acquire::http::Proxy "http://proxy.test";'; echo 'DPkg::Post-Invoke "false";'; exit; fi
for name in LIST PARTS TRUSTED TRUSTEDPARTS NETRC NETRCPARTS; do echo "$name='{etc}/$name'"; done
"""
APT_GET = """\
#!/bin/sh
echo "$@" >> {log}
cp "$APT_CONFIG" {log}.conf
case "$2" in
  update) grep -q 'Suites: sid' "$(dirname "$APT_CONFIG")/etc/kiln.sources" ;;
  download) echo "Get:1 http://mirror.test/debian sid/main hello"; echo one > hello_1%3a2.0-1_amd64.deb; {then} ;;
  install) echo two > "$(dirname "$APT_CONFIG")/cache/archives/needed_3_all.deb" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    etc, programs = tmp_path / "etc", tmp_path / "bin"
    (etc / "PARTS").mkdir(parents=True)
    programs.mkdir()
    (etc / "LIST").write_text("")
    (etc / "PARTS" / "debian.sources").write_text(DEB822)
    (etc / "PARTS" / "old.sources.disabled").write_text(DEB822.replace("mirror", "wrong"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    stub(tmp_path, "apt-config", APT_CONFIG.format(etc=etc))
    stub(tmp_path, "apt-get", APT_GET.format(log=tmp_path / "calls", then=":"))
    return tmp_path


def stub(machine: Path, name: str, text: str) -> None:
    path = machine / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def test_fetch_once(machine: Path) -> None:
    dest, seen = machine / "cache" / "debs", list[str]()
    (deb,) = debian.fetch(("hello",), suite="sid", dest=dest, progress=seen.append)
    assert (deb.name, deb.version, deb.path.read_text()) == ("hello", "1:2.0-1", "one\n")
    assert f"{deb.sha256}  {deb.path.name}\n" == (dest / "SHA256SUMS").read_text()
    assert 'Acquire::http::Proxy "http://proxy.test";' in (machine / "calls.conf").read_text()
    assert "Post-Invoke" not in (machine / "calls.conf").read_text()
    assert seen == ["index of sid"]

    assert debian.fetch(("hello",), suite="sid", dest=dest) == (deb,)
    assert debian.fetched(("hello",), suite="sid", dest=dest) == (deb,)
    calls = (machine / "calls").read_text()
    assert calls == "--quiet update\n--quiet download hello\n"
    assert sorted(path.name for path in dest.parent.iterdir()) == [".debs.lock", "debs"]


def test_fetch_again_what_was_damaged_or_is_another_request(machine: Path) -> None:
    dest = machine / "debs"
    (deb,) = debian.fetch(("hello",), suite="sid", dest=dest)
    deb.path.write_text("damaged")
    assert debian.fetch(("hello",), suite="sid", dest=dest) == (deb,)
    assert deb.path.read_text() == "one\n"
    assert debian.fetched(("hello", "more"), suite="sid", dest=dest) == ()
    (needed,) = debian.fetch(("hello",), suite="sid", dest=dest, dependencies=True)
    assert needed.name == "needed"
    assert not deb.path.exists()


def test_a_fetch_that_fails_leaves_nothing(machine: Path) -> None:
    stub(machine, "apt-get", APT_GET.format(log=machine / "calls", then="echo no such package; exit 100"))
    dest = machine / "cache" / "debs"
    with pytest.raises(errors.CommandFailed, match="no such package"):
        debian.fetch(("hello",), suite="sid", dest=dest)
    assert [path.name for path in dest.parent.iterdir()] == [".debs.lock"]


def test_what_an_interrupted_run_left_is_swept(machine: Path) -> None:
    left = machine / ".debs.killed"
    left.mkdir()
    debian.fetch(("hello",), suite="sid", dest=machine / "debs")
    assert not left.exists()
