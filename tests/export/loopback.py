"""Let huggingface_hub in this process, where it is imported already, talk to a Hub on the loopback."""

from __future__ import annotations

import huggingface_hub
import pytest

from diffcompress.export import hub
from tests.hub_server import TOKEN, HubServer


def point_client_at(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also cuts the waiting between our own attempts short."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "_WAITS", (0.0, 0.0))
