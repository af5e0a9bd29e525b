"""Relating models: ways between their coordinates, nearest parameters, similar layers."""
