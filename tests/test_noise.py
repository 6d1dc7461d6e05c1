"""The noise process against diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffcompress.noise import NoiseProcess, generator


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_a_deterministic_walk_equals_diffusers_ddim(prediction_type, clip_sample):
    config = {"prediction_type": prediction_type, "clip_sample": clip_sample, "num_train_timesteps": 100}
    process = NoiseProcess.from_config(DDPMScheduler(**config).config)
    scheduler = DDIMScheduler(**config, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    grid = process.grid(10)[:, 0]
    assert grid.tolist() == scheduler.timesteps.tolist()
    noisy = expected = torch.randn(2, 1, 4, 4, generator=generator(0))
    for position, timestep in enumerate(grid):
        prediction = torch.tanh(noisy + timestep / 100)  # stands for any function of the noisy input and the timestep
        following = grid[position + 1] if position < 9 else torch.tensor(-1)
        expected = scheduler.step(prediction, timestep, expected).prev_sample
        noisy = process.step(prediction, noisy, timestep.expand(2), following.expand(2), 0.0, torch.zeros_like(noisy))
        torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-4)


def test_a_stochastic_step_has_the_variance_of_diffusers_ddim():
    process = NoiseProcess.from_config(DDPMScheduler(num_train_timesteps=100, clip_sample=False).config)
    scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    scheduler.set_timesteps(10)
    noisy, prediction, noise = (torch.randn(3, 1, 4, 4, generator=generator(i)) for i in range(3))
    expected = scheduler.step(prediction, 60, noisy, eta=0.7, variance_noise=noise).prev_sample
    got = process.step(prediction, noisy, torch.full((3,), 60), torch.full((3,), 50), 0.7, noise)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip_sample", [True, False])
def test_an_ancestral_step_is_that_of_diffusers_ddpm(clip_sample):
    config = {"num_train_timesteps": 100, "clip_sample": clip_sample}
    process, scheduler = NoiseProcess.from_config(DDPMScheduler(**config).config), DDPMScheduler(**config)
    scheduler.set_timesteps(10)
    noisy, prediction = (3 * torch.randn(3, 1, 4, 4, generator=generator(i)) for i in range(2))
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    expected = scheduler.step(prediction, 60, noisy, generator=torch.Generator().manual_seed(7)).prev_sample
    got = process.step(prediction, noisy, torch.full((3,), 60), torch.full((3,), 50), 1.0, noise)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_target_is_the_prediction_that_gives_back_clean_and_noise(prediction_type):
    process = NoiseProcess.from_config(DDPMScheduler(prediction_type=prediction_type, clip_sample=False).config)
    clean, noise = torch.randn(8, 1, 4, 4, dtype=torch.float64), torch.randn(8, 1, 4, 4, dtype=torch.float64)
    timestep = torch.tensor([0, 1, 10, 100, 500, 900, 990, 999])
    noisy = process.noisy(clean, noise, timestep)
    torch.testing.assert_close(noisy, DDPMScheduler().add_noise(clean, noise, timestep), rtol=1e-5, atol=1e-5)
    got_clean, got_noise = process.clean_and_noise(process.target(clean, noise, timestep), noisy, timestep)
    torch.testing.assert_close(got_clean, clean)
    torch.testing.assert_close(got_noise, noise)


def test_the_v_target_is_that_of_diffusers():
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    process = NoiseProcess.from_config(scheduler.config)
    clean, noise, timestep = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([3, 300, 600, 900])
    torch.testing.assert_close(process.target(clean, noise, timestep), scheduler.get_velocity(clean, noise, timestep))


def test_jittered_grids_stay_in_range_and_antithetic_draws_pair_up():
    process = NoiseProcess.from_config(DDPMScheduler().config)
    grid = process.grid(25, torch.rand(64, generator=generator(1)))
    assert grid.min() >= 0
    assert grid.max() <= 999
    assert (grid[:-1] > grid[1:]).all()
    assert len(grid.unique()) > 400
    pairs = process.draw_timesteps(10, generator(2), "antithetic").view(5, 2)
    assert (pairs.sum(1) == 999).all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEuler"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "velocity"}, "velocity"),
        ({"_class_name": "DDPMScheduler", "thresholding": True}, "thresholding"),
    ],
)
def test_what_cannot_be_distilled_is_refused_by_name(config, words):
    with pytest.raises(ValueError, match=words):
        NoiseProcess.from_config(config)


def test_generators_follow_from_their_integers_alone():
    draws = {
        tuple(torch.randn(2, generator=generator(*key)).tolist()) for key in [(0, 1), (1, 0), (0, 1, 0), (0,), (1,)]
    }
    assert len(draws) == 5
    assert torch.equal(torch.randn(3, generator=generator(5, 6)), torch.randn(3, generator=generator(5, 6)))
