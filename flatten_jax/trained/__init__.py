"""Trained models: opened from wherever they are, shared, exported, and asked what they see."""
