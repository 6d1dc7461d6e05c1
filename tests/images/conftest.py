"""The client of this process talks to a Hub on the loopback, which holds two data sets; its cache is empty."""

from __future__ import annotations

import time

import pytest

from tests.hub_server import TOKEN, HubServer
from tests.images.hub_data import FILES, TABLE, save_files, save_table


@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import HfFileSystem, constants

    with HubServer(tmp_path / "hub") as server:
        names = {
            f"{kind}/{i}.png": 10 * number + i for number, kind in enumerate(("cat", "dog", "emu")) for i in range(8)
        }
        server.add(f"datasets/{FILES}", save_files(tmp_path / "files", names))
        values, labels = list(range(9)), [i % 3 for i in range(9)]
        table = save_table(tmp_path / "table", image=values, label=labels, caption=[[f"number {i}"] for i in values])
        server.add(f"datasets/{TABLE}", table)
        template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}".replace("{endpoint}", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        own = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_UPDATE_DOWNLOAD_COUNTS": False}
        own |= {"HUB_DATASETS_URL": server.url + "/datasets/{repo_id}/resolve/{revision}/{path}"}
        for key, value in own.items():
            monkeypatch.setattr(datasets.config, key, value)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        HfFileSystem.clear_instance_cache()
        yield server
        HfFileSystem.clear_instance_cache()
