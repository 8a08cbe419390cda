"""The parser of the console command."""

import pytest

from flatten_jax.cli.main import main


def test_argument_that_no_command_takes_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["models", "no*", "--colour"])
    assert "unrecognized arguments: --colour" in capsys.readouterr().err
