"""Tests against the package index that pip is configured with; without one they are skipped, and say so."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import requests

from kiln.upstream import pip_config


@pytest.fixture(autouse=True, scope="session")
def index() -> None:
    settings = pip_config.read()
    name = urlsplit(settings.index_url).hostname
    try:
        answer = requests.get(
            f"{settings.index_url}/vllm/", timeout=20, verify=str(settings.cert) if settings.cert else True
        )
    except requests.RequestException as error:
        pytest.skip(f"the package index {name} does not answer: {type(error).__name__}")
    if not answer.ok:
        pytest.skip(f"the package index {name} does not answer: HTTP {answer.status_code}")
