"""Shipping: weights, formats, proof, provenance, upload."""
