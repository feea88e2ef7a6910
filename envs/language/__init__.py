"""Worlds of words, where what is best is known exactly."""
