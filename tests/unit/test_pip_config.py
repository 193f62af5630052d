from __future__ import annotations

from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

from kiln.upstream import pip_config
from kiln.upstream.pip_config import PipConfig

GLOBAL = "[global]\nindex-url = http://127.0.0.1:1/global\n"
INSTALL = "[install]\nindex-url = http://127.0.0.1:1/install\n"
URL = "http://127.0.0.1:9/simple"


def read(**values: str) -> PipConfig:
    """Return what is read with PIP_<NAME> set to each value."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"PIP_{name}", value)
        pip_config.read.cache_clear()
        return pip_config.read()


def test_without_settings_everything_is_pips_default() -> None:
    assert read() == PipConfig(index_url=PyPI.simple_url, find_links=(), cert=None)


@pytest.mark.parametrize("given", [URL, f"{URL}/"])
def test_the_index_of_the_environment(given: str) -> None:
    assert read(INDEX_URL=given) == PipConfig(index_url=URL, find_links=(), cert=None)


def test_find_links_keeps_the_local_folders_only(tmp_path: Path) -> None:
    plain, spaced = tmp_path / "plain", tmp_path / "with space"
    plain.mkdir()
    spaced.mkdir()
    words = (str(plain), f"file://{tmp_path}/with%20space", str(tmp_path / "gone"), "http://127.0.0.1:9/links")
    assert read(FIND_LINKS=" ".join(words)).find_links == (plain, spaced)


def test_the_ca_bundle() -> None:
    assert read(CERT="/some/ca.crt").cert == Path("/some/ca.crt")


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (GLOBAL, {}, "global"),
        (f"{GLOBAL}{INSTALL}", {}, "install"),
        (INSTALL, {"INDEX_URL": "http://127.0.0.1:1/env"}, "env"),
    ],
)
def test_the_stronger_setting_wins(tmp_path: Path, text: str, environment: dict[str, str], expected: str) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(text, encoding="utf-8")
    found = read(CONFIG_FILE=str(file), **environment)
    assert found.index_url == f"http://127.0.0.1:1/{expected}"


def test_folders_of_a_configuration_file_may_stand_on_lines_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(f"[global]\nfind-links =\n    {tmp_path}\n    {tmp_path / 'gone'}\n", encoding="utf-8")
    assert read(CONFIG_FILE=str(file)).find_links == (tmp_path,)
