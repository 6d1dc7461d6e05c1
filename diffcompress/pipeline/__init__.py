"""The loaded pipeline: denoiser, codec, conditions, and drawing samples with it."""
