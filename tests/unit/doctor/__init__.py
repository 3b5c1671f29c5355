"""Judgements of what doctor has seen, without looking anywhere."""
