"""Where a model comes from: resolving, downloading, single files, weights, licence."""
