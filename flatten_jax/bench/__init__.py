"""Measurements of speed and memory: side by side in one run, with their spread and the machine they were made on."""
