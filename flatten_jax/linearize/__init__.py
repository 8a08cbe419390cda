"""A trained model gets another attention: swap it, align it block by block, train on. `flatten-jax linearize`."""
