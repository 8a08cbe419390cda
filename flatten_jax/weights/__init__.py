"""Weights of PyTorch models."""
