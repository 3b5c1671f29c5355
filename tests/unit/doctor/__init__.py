"""Checks on facts that the tests make up."""
