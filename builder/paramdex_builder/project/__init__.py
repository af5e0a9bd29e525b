"""Projecting: every parameter's strongest tokens and every head's strongest pairs, exact."""
