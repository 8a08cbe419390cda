"""The console command `flatten-jax`: a thin layer over functions of the package, a file for each kind of command.

A command is a pair of functions side by side: one adds its arguments, the other does what they ask for. JAX is imported
in the latter alone.
"""
