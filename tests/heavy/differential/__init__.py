"""The gate parses requests like a real server behind it."""
