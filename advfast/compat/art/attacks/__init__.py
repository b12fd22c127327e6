"""Attacks, where ART has them."""
