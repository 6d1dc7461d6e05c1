"""The two latent demo teachers: their networks, losses, samplers and diffusers folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks import demo_text, fashion_mnist

SEED = 0
NUM_CLASSES = 10
NULL_SHARE = 0.1
SNR_LIMIT = 5.0
STEPS = 25
SHAPE = (4, 14, 14)
NETWORK = {
    "sample_size": 14,
    "patch_size": 2,
    "in_channels": 4,
    "num_attention_heads": 6,
    "attention_head_dim": 16,
    "num_layers": 6,
}


# Not embedded: DiTs of another shape, by their schedules, to hold against what `dit` says.
OTHER = NETWORK | {"num_attention_heads": 4, "num_layers": 4}
OTHERS = {"dit-cosine": "squaredcos_cap_v2", "dit-linear": "linear"}
NAMES = ("dit", "mmdit", *OTHERS)


def build(name: str, vae: AutoencoderKL) -> Teacher:
    """The teacher of one of `NAMES` with seeded weights, in evaluation mode."""
    if name in OTHERS:
        return Dit(vae, OTHER, OTHERS[name])
    return {"dit": Dit, "mmdit": Mmdit}[name](vae)


def start(model: nn.Module, gates: tuple[str, ...]) -> None:
    """Xavier weights, and zeros in the layers whose names end in one of `gates`, so that every block starts as the
    identity and the output as zero (Peebles and Xie 2023)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight) if name.endswith(gates) else nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class Teacher:
    """model: the network that is trained; vae: decodes what it samples."""

    model: nn.Module

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        torch.manual_seed(SEED)

    def loss(self, clean: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Of latents `[B, 4, 14, 14]` and labels `[B]`; `generator` draws all that is random."""
        raise NotImplementedError

    def sample(self, labels: Tensor, guidance: float, seed: int) -> Tensor:
        """Latents `[B, 4, 14, 14]` of unit variance, `STEPS` steps."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write a diffusers pipeline folder in half precision."""
        raise NotImplementedError


class Dit(Teacher):
    model: DiTTransformer2DModel

    def __init__(self, vae: AutoencoderKL, network: dict[str, int] = NETWORK, schedule: str = "linear") -> None:
        super().__init__(vae)
        self.model = DiTTransformer2DModel(**network, out_channels=8, num_embeds_ada_norm=NUM_CLASSES)
        start(self.model, ("norm1.linear", "proj_out_1", "proj_out_2"))
        # In training mode every block would drop labels by itself, each for another sample; here `loss` drops them.
        self.model.eval()
        self.scheduler = DDIMScheduler(
            num_train_timesteps=1000, beta_schedule=schedule, clip_sample=False, set_alpha_to_one=True
        )
        alphas = self.scheduler.alphas_cumprod.double()
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        betas = self.scheduler.betas.double()
        variance = betas * (1 - before) / (1 - alphas)
        variance[0] = variance[1]  # the last step's is zero
        self.alphas = alphas.float()
        self.log_betas, self.log_variance = betas.log().float(), variance.log().float()
        self.noise_to_mean = (betas / ((1 - alphas) * (1 - betas)).sqrt()).float()
        snr = alphas / (1 - alphas)
        self.weights = (snr.clamp(max=SNR_LIMIT) / snr).float()

    def loss(self, clean: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        count = len(clean)
        timesteps = torch.randint(0, 1000, (count,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        dropped = torch.rand(count, generator=generator) < NULL_SHARE
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        classes = labels.masked_fill(dropped, NUM_CLASSES)
        predicted, share = self.model(noisy, timestep=timesteps, class_labels=classes).sample.chunk(2, 1)
        error = (predicted - noise).pow(2)
        simple = (self.weights[timesteps] * error.mean((1, 2, 3))).mean()
        return simple + self._variational_bound(share, error.detach(), timesteps)

    def _variational_bound(self, share: Tensor, error: Tensor, timesteps: Tensor) -> Tensor:
        """Bits per value of one random step; the mean is held fixed, so it teaches the variance `share` alone.

        share: -1 for the posterior's variance to 1 for beta, in logarithms; error: squared, of the predicted noise.
        """
        low, high = self.log_variance[timesteps][:, None, None, None], self.log_betas[timesteps][:, None, None, None]
        log_variance = low + (share + 1) / 2 * (high - low)
        distance = self.noise_to_mean[timesteps][:, None, None, None].pow(2) * error
        gap = low - log_variance
        divergence = 0.5 * (gap.exp() - 1 - gap + distance * torch.exp(-log_variance))
        likelihood = 0.5 * (math.log(2 * math.pi) + log_variance + distance * torch.exp(-log_variance))
        last = (timesteps == 0)[:, None, None, None]
        return torch.where(last, likelihood, divergence).mean() / math.log(2)

    @torch.no_grad()
    def sample(self, labels: Tensor, guidance: float, seed: int) -> Tensor:
        latents = torch.randn(len(labels), *SHAPE, generator=torch.Generator().manual_seed(seed))
        null = torch.full_like(labels, NUM_CLASSES)
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            times = t.expand(len(labels))
            noise = self.model(latents, timestep=times, class_labels=labels).sample[:, :4]
            if guidance != 1.0:
                free = self.model(latents, timestep=times, class_labels=null).sample[:, :4]
                noise = free + guidance * (noise - free)
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents

    def export(self, folder: Path) -> None:
        pipeline = DiTPipeline(self.model.half(), self.vae.half(), self.scheduler)
        pipeline.save_pretrained(folder)
        _forget_origin(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index["id2label"] = {str(i): name for i, name in enumerate(fashion_mnist.CLASS_NAMES)}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _forget_origin(folder: Path) -> None:
    """Leave out where the autoencoder was read from: a path of the machine that trained it."""
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


class RepeatLast(TorchFunctionMode):
    """Inside, attention counts its last key `n` times (`[B]`): what `n` equal tokens without positions amount to.

    The third encoder is silent, so the pipeline appends `max_sequence_length` zero tokens, 256 unless asked otherwise;
    training on one token that counts as many costs the time of one.
    """

    def __init__(self, n: Tensor) -> None:
        super().__init__()
        self.bias = n.log()[:, None, None, None]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            bias = torch.zeros(len(self.bias), 1, 1, args[1].shape[2])
            bias[..., -1:] = self.bias
            kwargs = {**kwargs, "attn_mask": bias}
        return function(*args, **kwargs)


class Mmdit(Teacher):
    model: SD3Transformer2DModel

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__(vae)
        width = NETWORK["num_attention_heads"] * NETWORK["attention_head_dim"]
        self.model = SD3Transformer2DModel(
            **NETWORK,
            out_channels=4,
            joint_attention_dim=2 * demo_text.WIDTH,
            caption_projection_dim=width,
            pooled_projection_dim=2 * demo_text.WIDTH,
            pos_embed_max_size=7,
        ).eval()
        start(self.model, ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out"))
        tokenizer, silent = demo_text.build_tokenizer(), demo_text.build_silent_tokenizer()
        self.pipeline = StableDiffusion3Pipeline(
            transformer=self.model,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
            vae=vae,
            text_encoder=demo_text.build_encoder(tokenizer, 0),
            tokenizer=tokenizer,
            text_encoder_2=demo_text.build_encoder(tokenizer, 1),
            tokenizer_2=tokenizer,
            text_encoder_3=demo_text.build_silent_encoder(silent),
            tokenizer_3=silent,
        )
        # Row c P + p: phrase p of class c; the last row: the empty prompt.
        phrases = demo_text.phrases()
        self.num_phrases = len(phrases[0])
        texts = [text for row in phrases for text in row] + [""]
        self.tokens, self.pooled = demo_text.embeddings(self.pipeline, texts)

    def loss(self, clean: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        count = len(clean)
        sigmas = torch.randn(count, generator=generator).sigmoid()
        noise = torch.randn(clean.shape, generator=generator)
        dropped = torch.rand(count, generator=generator) < NULL_SHARE
        phrases = torch.randint(0, self.num_phrases, (count,), generator=generator)
        repeats = 256 ** torch.rand(count, generator=generator)
        texts = (labels * self.num_phrases + phrases).masked_fill(dropped, len(self.tokens) - 1)
        share = sigmas[:, None, None, None]
        with RepeatLast(repeats):
            predicted = self._flow((1 - share) * clean + share * noise, 1000 * sigmas, texts)
        return F.mse_loss(predicted, noise - clean)

    def _flow(self, noisy: Tensor, timesteps: Tensor, texts: Tensor) -> Tensor:
        return self.model(
            noisy,
            timestep=timesteps,
            encoder_hidden_states=self.tokens[texts],
            pooled_projections=self.pooled[texts],
        ).sample

    @torch.no_grad()
    def sample(self, labels: Tensor, guidance: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(len(labels), *SHAPE, generator=generator)
        texts = labels * self.num_phrases + torch.randint(0, self.num_phrases, labels.shape, generator=generator)
        null = torch.full_like(texts, len(self.tokens) - 1)
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            times = t.expand(len(labels))
            flow = self._flow(latents, times, texts)
            if guidance != 1.0:
                free = self._flow(latents, times, null)
                flow = free + guidance * (flow - free)
            latents = scheduler.step(flow, t, latents).prev_sample
        return latents

    def export(self, folder: Path) -> None:
        self.pipeline.to(torch.float16).save_pretrained(folder)
        _forget_origin(folder)
        for name in ("tokenizer", "tokenizer_2"):
            demo_text.save_tokenizer(self.pipeline.tokenizer, folder / name)
        (folder / "prompts.txt").write_text("\n".join(demo_text.prompts()) + "\n")
