"""Fakes that we wrote: each stands for one neighbour, and does what a test tells it."""
