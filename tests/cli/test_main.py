"""The parser of the console command."""

import pytest

from flatten_jax.cli.main import main


def test_argument_that_no_command_takes_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["models", "no*", "--colour"])
    assert "unrecognized arguments: --colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "gs://bucket/picture.jpg", "--model", "flatten_deit_t", "--random"],
        ["predict", "picture.jpg", "--from", "gs://bucket/run"],
        ["curves", "gs://bucket/run"],
        ["share", "run", "gs://bucket/shared"],
        ["convert", "a.pth", "s3://bucket/a.safetensors"],
        ["config", "gs://bucket/run"],
        ["check-data", "gs://bucket/pictures"],
    ],
)
def test_buckets_are_refused_before_a_folder_of_their_name_is_made(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: \w+=(gs|s3)://bucket/.*: buckets are not read or written yet"):
        main(arguments)
    assert not list(tmp_path.iterdir())
