"""The noise process against diffusers' own schedulers."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffcompress.noise import Diffusion, Flow, from_scheduler, generator, levels, streams


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_a_deterministic_walk_equals_diffusers_ddim(prediction_type, clip_sample):
    config = {"prediction_type": prediction_type, "clip_sample": clip_sample, "num_train_timesteps": 100}
    process = from_scheduler(DDPMScheduler(**config).config)
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
    process = from_scheduler(DDPMScheduler(num_train_timesteps=100, clip_sample=False).config)
    scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    scheduler.set_timesteps(10)
    noisy, prediction, noise = (torch.randn(3, 1, 4, 4, generator=generator(i)) for i in range(3))
    expected = scheduler.step(prediction, 60, noisy, eta=0.7, variance_noise=noise).prev_sample
    got = process.step(prediction, noisy, torch.full((3,), 60), torch.full((3,), 50), 0.7, noise)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip_sample", [True, False])
def test_an_ancestral_step_is_that_of_diffusers_ddpm(clip_sample):
    config = {"num_train_timesteps": 100, "clip_sample": clip_sample}
    process, scheduler = from_scheduler(DDPMScheduler(**config).config), DDPMScheduler(**config)
    scheduler.set_timesteps(10)
    noisy, prediction = (3 * torch.randn(3, 1, 4, 4, generator=generator(i)) for i in range(2))
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    expected = scheduler.step(prediction, 60, noisy, generator=torch.Generator().manual_seed(7)).prev_sample
    got = process.step(prediction, noisy, torch.full((3,), 60), torch.full((3,), 50), 1.0, noise)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_target_is_the_prediction_that_gives_back_clean_and_noise(prediction_type):
    process = from_scheduler(DDPMScheduler(prediction_type=prediction_type, clip_sample=False).config)
    clean, noise = torch.randn(8, 1, 4, 4, dtype=torch.float64), torch.randn(8, 1, 4, 4, dtype=torch.float64)
    timestep = torch.tensor([0, 1, 10, 100, 500, 900, 990, 999])
    noisy = process.noisy(clean, noise, timestep)
    torch.testing.assert_close(noisy, DDPMScheduler().add_noise(clean, noise, timestep), rtol=1e-5, atol=1e-5)
    got_clean, got_noise = process.clean_and_noise(process.target(clean, noise, timestep), noisy, timestep)
    torch.testing.assert_close(got_clean, clean)
    torch.testing.assert_close(got_noise, noise)


def test_the_v_target_is_that_of_diffusers():
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    process = from_scheduler(scheduler.config)
    clean, noise, timestep = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([3, 300, 600, 900])
    torch.testing.assert_close(process.target(clean, noise, timestep), scheduler.get_velocity(clean, noise, timestep))


def test_jittered_grids_stay_in_range_and_antithetic_draws_pair_up():
    process = from_scheduler(DDPMScheduler().config)
    grid = process.grid(25, torch.rand(64, generator=generator(1)))
    assert grid.min() >= 0
    assert grid.max() <= 999
    assert (grid[:-1] > grid[1:]).all()
    assert len(grid.unique()) > 400
    pairs = process.draw_timesteps(10, generator(2), "antithetic").view(5, 2)
    assert (pairs.sum(1) == 999).all()


def test_no_sample_is_made_of_what_the_first_prediction_errs_by():
    """Cosine noise ends in noise alone: one prediction there, a hundredth off, would be an image of fifty times the
    size, which the next step brings back in."""
    config = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    process, offset = from_scheduler(DDPMScheduler(**config).config), torch.linspace(0, 0.999, 64)
    for num_steps in (4, 25, 1000):
        grid, noisy = process.grid(num_steps, offset), torch.randn(64, 1, 8, 8, generator=generator(0))
        for position in range(num_steps):
            following = grid[position + 1] if position + 1 < num_steps else torch.full((64,), -1)
            signal, sigma = process.signal_and_noise(grid[position], noisy)
            # Of images without variance: all of it is noise.
            prediction = 0.99 * noisy / (signal**2 + sigma**2).sqrt()
            noisy = process.step(prediction, noisy, grid[position], following, 0.0, noisy)
            assert noisy.square().mean((1, 2, 3)).sqrt().max() < 1.5
    for other in ({"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"clip_sample": True}):
        assert from_scheduler(DDPMScheduler(**config | other).config).grid(25, offset).max() == 999


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "EDM"),
        ({"_class_name": "LCMScheduler"}, "few steps"),
        ({"_class_name": "SCMScheduler"}, "few steps"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSde"),
        ({"_class_name": "HeliosScheduler"}, "neither"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "backwards"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "velocity"}, "velocity"),
        ({"_class_name": "DDPMScheduler", "thresholding": True}, "thresholding"),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "prediction_type": "v_prediction",
                "timestep_type": "continuous",
            },
            "EDM",
        ),
        ({"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp"}, "beta_schedule 'exp'"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 3}, "2 trained_betas for 3 timesteps"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0 is not"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps 'many' is not"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000 is not"),
        ({"clip_sample_range": 1e308}, "clip_sample_range 1e\\+308 is no range"),
        ({"clip_sample_range": [1.0]}, "clip_sample_range"),
        ({"beta_start": None}, "beta_start None is not a number"),
        ({"num_train_timesteps": None}, "num_train_timesteps None is not"),
        ({"beta_start": True}, "beta_start True is not"),
        ({"trained_betas": ["a"]}, "trained_betas are no"),
        ({"predict_epsilon": False}, "predict_epsilon False is read by no .* write prediction_type 'sample'"),
        ({"predict_epsilon": False, "prediction_type": "epsilon"}, "write prediction_type 'sample'"),
        ({"predict_epsilon": "false"}, "predict_epsilon 'false' is read by no"),
        ({"predict_epsilon": 0}, "predict_epsilon 0 is read by no"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 0}, "num_train_timesteps 0 is not"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "much"}, "'much' is no shift"),
        ({"beta_start": "low"}, "beta_start 'low' is not a number"),
        ({"beta_end": 1.5}, r"not all between 0 and 1 \(largest 1.5\)"),
    ],
)
def test_what_cannot_be_distilled_is_refused_by_name(config, words):
    with pytest.raises(ValueError, match=words):
        from_scheduler(config)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_deterministic_flow_walk_equals_diffusers_euler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = from_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler.config})
    assert isinstance(process, Flow)
    grid = process.grid(8, torch.zeros(3))
    scheduler.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    torch.testing.assert_close(grid[:, 0], scheduler.timesteps)
    noisy = theirs = torch.randn(3, 2, 4, 4, generator=generator(1))
    for position, timestep in enumerate(scheduler.timesteps):
        prediction = torch.randn(3, 2, 4, 4, generator=generator(2, position))
        following = grid[position + 1] if position < 7 else torch.full((3,), -1.0)
        noisy = process.step(prediction, noisy, grid[position], following, 0.0, torch.zeros_like(noisy))
        theirs = scheduler.step(prediction, timestep, theirs).prev_sample
    torch.testing.assert_close(noisy, theirs)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_flow_step_with_a_perfect_prediction_keeps_the_noise_level(eta):
    process = Flow(shift=3.0)
    clean, noise = torch.full((20000, 1, 1, 1), 2.0), torch.randn(20000, 1, 1, 1, generator=generator(3))
    now, then = torch.full((20000,), 800.0), torch.full((20000,), 500.0)
    fresh = torch.randn(clean.shape, generator=generator(4))
    moved = process.step(noise - clean, process.noisy(clean, noise, now), now, then, eta, fresh)
    assert abs(moved.mean() - 1.0) < 0.02 and abs(moved.std() - 0.5) < 0.02
    kept = torch.corrcoef(torch.stack([moved.flatten(), noise.flatten()]))[0, 1]
    # At full eta the noise is replaced as DDPM does it between the same signal-to-noise ratios (0.25^2 and 1).
    here, there = 0.04 / 0.68, 0.5
    assert abs(kept - (1 - eta**2 * (1 - here / there) / (1 - here)) ** 0.5) < 0.02


def test_flow_conversions_agree():
    process, timestep = Flow(shift=2.0), torch.tensor([1.0, 250.0, 999.0, 1000.0])
    clean, noise = torch.randn(4, 1, 3, 3).double(), torch.randn(4, 1, 3, 3).double()
    noisy = process.noisy(clean, noise, timestep)
    ours = process.clean_and_noise(process.target(clean, noise, timestep), noisy, timestep)
    torch.testing.assert_close(ours, (clean, noise))


def test_dynamic_shift_grows_with_the_resolution_as_flux_pipelines_have_it():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}
    for tokens in (256, 1024, 4096):
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(tokens))
        process = from_scheduler(config, tokens)
        torch.testing.assert_close(process.grid(4, torch.zeros(1))[:, 0], scheduler.timesteps)


def test_flow_draws_stay_in_range_and_antithetic_ones_pair_up():
    process = Flow(shift=1.0)
    pairs = process.draw_timesteps(10, generator(2), "antithetic").view(5, 2)
    torch.testing.assert_close(pairs.sum(1), torch.full((5,), 1000.0), atol=1.1, rtol=0)
    grid = Flow(shift=3.0).grid(5, torch.rand(64, generator=generator(1)))
    assert (grid[0] == 1000).all() and grid.min() > 0 and (grid[:-1] > grid[1:]).all()


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "DDIMScheduler"])
def test_what_a_config_leaves_out_is_as_its_class_has_it(name):
    import diffusers

    theirs, ours = getattr(diffusers, name)().alphas_cumprod, from_scheduler({"_class_name": name})
    assert isinstance(ours, Diffusion)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.double())


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("PNDMScheduler", {}, "Diffusion"),
        ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}, "Diffusion"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}, "Flow"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "Flow"),
        ("FlowMatchHeunDiscreteScheduler", {}, "Flow"),
    ],
)
def test_the_process_is_told_by_more_than_the_schedulers_name(name, options, kind):
    import diffusers

    config = {**getattr(diffusers, name)(**options).config, "_class_name": name}
    process = from_scheduler(config)
    assert type(process).__name__ == kind
    if isinstance(process, Diffusion):
        theirs = getattr(diffusers, name)(**options).alphas_cumprod
        torch.testing.assert_close(process.alphas_cumprod, theirs.double())
    elif "flow_shift" in options:
        assert isinstance(process, Flow) and process.shift == 3.0


def test_generators_follow_from_their_integers_alone():
    draws = {
        tuple(torch.randn(2, generator=generator(*key)).tolist()) for key in [(0, 1), (1, 0), (0, 1, 0), (0,), (1,)]
    }
    assert len(draws) == 5
    assert torch.equal(torch.randn(3, generator=generator(5, 6)), torch.randn(3, generator=generator(5, 6)))


def test_no_two_streams_share_their_numbers_and_none_ever_changes() -> None:
    """Banks, stored targets and published results follow from these integers."""
    named = {name: value for name, value in vars(streams).items() if name.isupper()}
    assert len(set(named.values())) == len(named)
    values = [1, 2, 11, 12, 41, 21, 22, 23, 24, 25, 26, 31, 301, 302, 303, 304, 305, 401, 2_000_003, 3_000_017]
    assert list(named.values()) == values
    assert generator(0, streams.NOISE, 3).initial_seed() == 5_326_038_651_468_352_210


PROCESSES: dict[str, dict[str, Any]] = {
    "pixels": {"_class_name": "DDPMScheduler"},
    "latents": {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "short": {"_class_name": "DDPMScheduler", "num_train_timesteps": 50},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    "shifted": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_by_noise_are_spread_evenly_over_its_squared_share(name):
    process = from_scheduler(PROCESSES[name])
    drawn = process.draw_timesteps(50_000, generator(0), "uniform")
    assert torch.equal(process.at(process.share_of(drawn)), drawn)
    weights = levels.weights(process, drawn)
    picked = drawn[torch.multinomial(weights, 50_000, replacement=True, generator=generator(1))]
    low, high = levels.noise_share(process, process.at(torch.tensor([0.0, 1.0]))).square().tolist()
    for timestep in (picked, levels.spread(process, drawn)):
        squares = levels.noise_share(process, timestep).square()
        counts = torch.histc((squares.float() - low) / (high - low), 5, 0, 1) / 10_000
        least = 0.6 if name == "short" else 0.85  # a step of a short process is a good part of a fifth
        assert counts.min() > least and counts.max() < 2 - least, counts


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_by_noise_leave_pure_noise_what_is_its_own(name):
    """Sampling begins there, where half of a stretch around it would lie beyond."""
    process = from_scheduler(PROCESSES[name])
    before, last = levels.weights(process, process.at(torch.tensor([0.97, 1.0], dtype=torch.float64))).tolist()
    assert last == pytest.approx(before, rel=0.35)
