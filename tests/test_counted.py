from flatten_jax.counted import counted


def test_one_has_no_plural():
    assert counted(1, "picture") == "1 picture"
    assert [counted(0, "class"), counted(1234, "picture")] == ["0 classes", "1,234 pictures"]
