"""Data of a bucket, copied to this machine: ArrayRecord and decoders read files here, and gs:// not at all."""

import concurrent.futures
import fcntl
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from flatten_jax import paths

THREADS = 16
UNREAD = (
    "data are not read from a bucket: have them copied to this machine, once (--config.data.cache_dir=/local/folder), "
    "or mount the bucket (gcsfuse)"
)


def check(address: str | os.PathLike, cache_dir: str | os.PathLike | None) -> None:
    """ValueError unless there is a folder to copy to, and `address` is one that can be copied; OSError: not reached."""
    if not paths.is_bucket(address):
        raise ValueError(f"{os.fspath(address)}: of addresses only {paths.SCHEME} can be copied from; mount it")
    if not cache_dir:
        raise ValueError(f"{os.fspath(address)}: {UNREAD}")
    paths.check("data", os.fspath(address))


def copied(address: str | os.PathLike, cache_dir: str | os.PathLike | None) -> Path:
    """The local copy of a folder of a bucket, `<cache_dir>/<bucket>/<folder>`.

    What is there with its size stays, so that an interrupted copy goes on; a file gets its name when it is whole.
    Processes of one machine may ask at the same time: one copies, and the others wait.

    Raises:
        ValueError, FileNotFoundError: see `check`; nothing at `address`; files here that are not there.
        OSError: not enough space, or a file that came otherwise than the bucket's list says.
    """
    check(address, cache_dir)
    address = os.fspath(address).rstrip("/")
    place = paths.local(cache_dir).expanduser() / address.removeprefix(paths.SCHEME)
    sizes = _sizes(address)
    place.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for rest in place.rglob(".*.part"):
            rest.unlink()
        here = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
        if strange := sorted(here.keys() - sizes.keys()):
            raise ValueError(
                f"{place} is the copy of {address}, which has no {strange[0]} ({len(strange):,} such files): delete "
                "them here, or take another --config.data.cache_dir"
            )
        missing = {name: size for name, size in sizes.items() if name not in here or here[name].stat().st_size != size}
        if missing:
            _copy(address, place, missing, len(sizes))
    return place


def _sizes(address: str) -> dict[str, int]:
    """{path below the address: bytes}."""
    root = f"{address.removeprefix(paths.SCHEME)}/"
    found = paths.filesystem().find(address, detail=True)
    sizes = {
        name.removeprefix(root): int(info["size"])
        for name, info in found.items()
        if name.startswith(root) and name[-1] != "/"
    }
    if not sizes or any(name.startswith("/") or ".." in name.split("/") for name in sizes):
        raise FileNotFoundError(f"{address} holds no files: is it the folder that is meant?")
    return sizes


def _copy(address: str, place: Path, missing: dict[str, int], of: int) -> None:
    total, free = sum(missing.values()), shutil.disk_usage(place).free
    if total > free:
        raise OSError(f"{address} needs {total / 2**30:,.1f} GiB more in {place}, where {free / 2**30:,.1f} are free")
    print(f"copying {len(missing):,} of {of:,} files ({total / 2**30:,.2f} GiB) of {address} to {place}", flush=True)
    client = paths.filesystem()

    def fetch(name: str) -> int:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        client.get_file(f"{address}/{name}", str(part))
        if (size := part.stat().st_size) != missing[name]:
            raise OSError(f"{address}/{name} came with {size:,} bytes instead of {missing[name]:,}")
        part.replace(target)
        return size

    bar = tqdm(total=total, unit="B", unit_scale=True, desc=place.name, disable=None)
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        for done in concurrent.futures.as_completed([pool.submit(fetch, name) for name in missing]):
            bar.update(done.result())
    except OSError:
        raise
    except Exception as error:  # of the client's many kinds
        raise OSError(f"{address} could not be copied: {paths.first_line(error)}; the same command goes on") from error
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
