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
        ["predict", "picture.jpg", "--from", "s3://bucket/run"],
        ["curves", "s3://bucket/run"],
        ["share", "run", "hdfs://bucket/shared"],
        ["convert", "a.pth", "gs://bucket/a.safetensors"],
        ["visualize", "--model", "flatten_deit_t", "--output", "gs://bucket/a.png"],
        ["prepare", "digits", "--data_dir", "gs://bucket/data"],
        ["check-data", "gs://bucket/pictures"],
    ],
)
def test_other_addresses_are_refused_before_a_folder_of_their_name_is_made(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: \w+=\w+://bucket/.*: (of addresses only gs://|a bucket is not)"):
        main(arguments)
    assert not list(tmp_path.iterdir())
