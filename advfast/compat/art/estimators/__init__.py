"""Estimators, where ART has them."""
