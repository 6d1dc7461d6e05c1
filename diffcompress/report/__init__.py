"""Telling: report, card, overview, charts and how far a result can be trusted."""
