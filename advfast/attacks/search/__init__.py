"""Attacks that search for one adversarial image a sample and stop there: the parts of AutoAttack."""
