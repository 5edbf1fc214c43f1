"""Scores that mean something: a pair's raw score to the probability that it is a near-duplicate, and a threshold."""
