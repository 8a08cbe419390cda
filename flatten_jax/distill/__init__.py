"""A teacher beside the labels: losses, which teacher, and the tasks that training has with one."""
