"""Teachers and feature space that ship with the package."""
