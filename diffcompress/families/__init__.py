"""What is particular about each class of denoiser: one file per class."""
