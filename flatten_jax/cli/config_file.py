"""Config files and their overrides, --config FILE --config.x.y=value, for main.py and for commands.

ml_collections reads both. What is here says in one line what it says in tracebacks, and fills in the config of a run.
"""

import difflib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from flatten_jax import paths

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def read_config(path: str, overrides: list[str]) -> Any:
    """The config of a file, or of a run's folder, with overrides.

    Raises:
        ValueError: one line that names the file or the override.
    """
    from absl import flags
    from ml_collections import config_flags

    argv = check_arguments(["flatten-jax", f"--config={path}", *overrides])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    unknown = parse(values, argv)[1:]
    if unknown:
        raise ValueError(f"unexpected arguments {' '.join(unknown)}; overrides are written --config.x.y=value")
    return values.config


def parse(values: Any, argv: list[str]) -> list[str]:
    """`values(argv)`; ValueError names the override, and what it may be."""
    from absl import flags

    try:
        return values(argv)
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError) as error:
        from flatten_jax.training.settings import SETTINGS, nearest

        named = re.match(r"flag --(?:no)?config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if named and named[1] in SETTINGS:
            raise ValueError(f"--config.{named[1]}={named[2]} must be {SETTINGS[named[1]].allowed}") from error
        unknown = re.match(r"Unknown command line flag '(?:no)?([\w.]+)'", str(error))
        hint = nearest(unknown[1], SETTINGS, "--config.") if unknown and "Did you mean" not in str(error) else ""
        raise ValueError(" ".join(str(error).split()) + hint) from error


def check_arguments(argv: list[str]) -> list[str]:
    """`argv` with the config of a run in place of its folder, or of nothing; names of settings are known for sure.

    A run's own config is meant where there is no --config: that of the run in --workdir, else of --config.init_from;
    and of the checkpoint with --mode=eval, whatever --config says.

    Raises:
        ValueError: no config, or none that can be read; a setting that it does not have; a folder that cannot be one.
    """
    argv, path = list(argv), flag_value(argv, "config")
    workdir, start = flag_value(argv, "workdir"), flag_value(argv, "config.init_from")
    for name, folder in (("--workdir", workdir), ("--checkpoint", flag_value(argv, "checkpoint"))):
        paths.check(name, folder or "")
    for name, source in (("--config.init_from", start), ("--config", path)):
        if source and "://" in source and not source.startswith("hf://"):
            paths.check(name, source)
    if workdir and paths.path_of(workdir).is_file():
        raise ValueError(f"--workdir={workdir} is a file: give a folder, which is made if it is not there")
    evaluated = (flag_value(argv, "checkpoint") or workdir) if flag_value(argv, "mode") == "eval" else None
    if evaluated and (own := _of_run(evaluated)):
        path = own
    elif path is None:
        path = (workdir and _of_run(workdir)) or (start and _of_run(start, ",anew"))
        if path is None:
            where = f", and {workdir} holds no run whose config could be taken" if workdir else ""
            raise ValueError(f"which config? There is no --config=configs/NAME.py{where}")
    elif not path.partition(":")[0].endswith(".py"):
        path = _of_run(path) or path
    at = next((i for i, arg in enumerate(argv) if re.match(r"--?config(=|$)", arg)), None)
    if at is None:
        argv.insert(1, f"--config={path}")
    else:
        argv[at : at + 1 + ("=" not in argv[at])] = [f"--config={path}"]
    known = _keys(load(path))
    for key in (match[1] for match in map(_OVERRIDE.match, argv) if match):
        if key not in known:
            _refuse(key, path, known)
    return argv


def flag_value(argv: list[str], name: str) -> str | None:
    """What is given for a flag, before flags are parsed: --name=value or --name value; the last one counts."""
    value = None
    for i, arg in enumerate(argv):
        if arg in (f"--{name}", f"-{name}") and i + 1 < len(argv):
            value = argv[i + 1]
        elif re.match(rf"--?{re.escape(name)}=", arg):
            value = arg.partition("=")[2]
    return value


def load(path: str) -> Any:
    """What a config file gives; ValueError in one line, with the file and the line where it fails."""
    file, colon, argument = path.partition(":")
    if "://" in path.split(".py:")[0]:
        raise ValueError(f"--config={path} holds no config.json of a run")
    if not Path(file).is_file():
        folder = Path(file).parent if "/" in file and Path(file).parent.is_dir() else Path("configs")
        found = sorted(folder.glob("*.py")) if folder.is_dir() else []
        there = {each.stem: str(each) for each in found if "get_config" in each.read_text(errors="replace")}
        close = difflib.get_close_matches(Path(file).stem, there, n=1)
        others = ", ".join(there.values()) or f"no configs in {folder}"
        hint = f"did you mean {there[close[0]]}?" if close else f"there are {others}"
        raise ValueError(f"--config={path}: {file} is not there; {hint}")
    sys.path.insert(0, str(Path.cwd()))  # configs import each other from the folder that main.py stands in
    try:
        spec = importlib.util.spec_from_file_location("config_file", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(*([argument] if colon else []))
    except (ValueError, OSError) as error:
        raise ValueError(f"--config={path}: {error}") from error
    except Exception as error:  # of any kind: the file is somebody's program
        line, trace = getattr(error, "lineno", None), error.__traceback__
        while trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
            trace = trace.tb_next
        where = f", line {line}" if line else ""
        raise ValueError(f"--config={path} cannot be read ({type(error).__name__}: {error}{where})") from error
    finally:
        sys.path.pop(0)
    if not hasattr(config, "to_json"):
        raise ValueError(f"--config={path}: get_config() gives {type(config).__name__}, not a ConfigDict")
    return config


def _of_run(path: str, variant: str = "") -> str | None:
    """The config file and argument for a run's folder; None where there is no run."""
    from flatten_jax.training import run_config

    if path.startswith("hf://"):
        return None
    return f"{run_config.__file__}:{path}{variant}" if run_config.find_config(path) else None


def _keys(config: Any) -> list[str]:
    from flatten_jax.training.settings import flat

    return list(flat(config))


def _refuse(key: str, path: str, known: list[str]) -> None:
    from flatten_jax.training.settings import nearest

    group = any(name.startswith(f"{key}.") for name in known)
    hint = " is a group: name one of its settings" if group else f" is not a setting{nearest(key, known)}"
    raise ValueError(f"--config.{key}{hint}; `flatten-jax config {path}` lists all")
