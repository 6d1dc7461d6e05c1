"""What holds for any schedule, timestep and sample: conversions undo each other, perfect steps stay on the path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcompress.noise import NoiseProcess, from_scheduler, generator

TIMESTEPS = st.integers(2, 1000)


@st.composite
def processes(draw: st.DrawFn) -> NoiseProcess:
    steps = draw(TIMESTEPS)
    if draw(st.booleans()):
        shift = draw(st.floats(0.1, 12.0))
        return from_scheduler(
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": steps, "shift": shift}
        )
    config = {
        "_class_name": draw(st.sampled_from(["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])),
        "prediction_type": draw(st.sampled_from(["epsilon", "sample", "v_prediction"])),
        "beta_schedule": draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        "beta_end": draw(st.floats(0.001, 0.05)),
        "num_train_timesteps": steps,
        "clip_sample": False,
    }
    return from_scheduler(config)


def drawn(seed: int, process: NoiseProcess, count: int = 6):
    """Clean samples, noise and timesteps over the whole of the process, in float64."""
    own = generator(seed)
    clean, noise = (torch.randn(count, 2, 3, 3, generator=own, dtype=torch.float64) for _ in range(2))
    return clean, noise, process.at(torch.linspace(0, 0.999, count))


@given(processes(), st.integers(0, 10**6))
def test_a_target_gives_back_clean_and_noise(process, seed):
    clean, noise, timestep = drawn(seed, process)
    noisy = process.noisy(clean, noise, timestep)
    found = process.clean_and_noise(process.target(clean, noise, timestep), noisy, timestep)
    # At either end one of the two is divided by as little as 2^-12.
    torch.testing.assert_close(found, (clean, noise), rtol=1e-6, atol=1e-6)


@given(processes(), st.integers(0, 10**6), st.integers(1, 40))
def test_a_perfect_prediction_leads_along_the_path_to_the_clean_sample(process, seed, num_steps):
    clean, noise, _ = drawn(seed, process)
    grid = process.grid(num_steps, torch.rand(len(clean), generator=generator(seed, 1)))
    noisy = process.noisy(clean, noise, grid[0])
    for position, timestep in enumerate(grid):
        following = grid[position + 1] if position + 1 < num_steps else torch.full_like(timestep, -1)
        prediction = process.target(clean, noise, timestep)
        noisy = process.step(prediction, noisy, timestep, following, 0.0, torch.zeros_like(noisy))
        expected = clean if position + 1 == num_steps else process.noisy(clean, noise, following)
        torch.testing.assert_close(noisy, expected, rtol=1e-5, atol=1e-5)


@given(processes(), st.integers(1, 60), st.integers(0, 10**6))
def test_grids_and_draws_stay_within_the_process(process, count, seed):
    last = process.num_timesteps - 1 if process.sampler == "ddim" else process.num_timesteps
    least = 0 if process.sampler == "ddim" else 1e-9
    grid = process.grid(min(count, process.num_timesteps), torch.rand(3, generator=generator(seed)))
    assert grid.min() >= least and grid.max() <= last
    assert (grid.diff(dim=0) <= 0).all()
    for scheme in ("uniform", "antithetic"):
        timesteps = process.draw_timesteps(count, generator(seed), scheme)
        assert timesteps.shape == (count,)
        assert timesteps.min() >= least and timesteps.max() <= last
    shares = torch.linspace(0, 0.9999, 50)
    assert (process.at(shares).diff() >= 0).all()


@given(processes(), st.integers(0, 10**6))
def test_noise_levels_rise_with_the_timestep(process, seed):
    timestep = process.at(torch.linspace(0, 0.9999, 64)).unique()
    signal, sigma = process.signal_and_noise(timestep, torch.zeros(len(timestep), 1, dtype=torch.float64))
    assert (signal.diff(dim=0) <= 0).all() and (sigma.diff(dim=0) >= 0).all()
    if process.sampler == "ddim":
        torch.testing.assert_close(signal**2 + sigma**2, torch.ones_like(signal))
    else:
        torch.testing.assert_close(signal + sigma, torch.ones_like(signal))


@pytest.mark.parametrize("other", [(0, 1, 2), (1, 0), (0, 1, 0)])
def test_streams_of_other_integers_are_others(other):
    assert not torch.equal(torch.rand(4, generator=generator(0, 1)), torch.rand(4, generator=generator(*other)))
