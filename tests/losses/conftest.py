import pytest
import torch
from jaxtyping import config

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """Calls as users make them: no types are checked on the way in."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
