"""Probes that collect the doctor's facts."""
