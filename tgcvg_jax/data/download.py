"""Downloading D4RL files."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from tgcvg_jax import tasks
from tgcvg_jax.data.validate import open_hdf5
from tgcvg_jax.types import UserError, one_line

ROOT = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
CONNECT_SECONDS = 20.0  # until the server answers, name lookup included
SILENCE_SECONDS = 30.0  # longest silence during a transfer
_CHUNK = 1 << 18


def fetch(url_path: str, destination: str | Path) -> Path:
    """Downloads one HDF5 file, with a progress bar on stderr.

    The file appears under its own name only when it is whole: its length is the one announced and
    it opens as HDF5. Nothing is left behind otherwise.

    Args:
      url_path: path below the download root, which is $TGCVG_URL or else D4RL's server.
      destination: where the file goes; its folder is created.

    Returns:
      The destination.

    Raises:
      UserError: the download failed; says which file to put where by hand.
    """
    destination = Path(destination).expanduser()
    root = os.environ.get("TGCVG_URL") or ROOT
    url = root.rstrip("/") + "/" + urllib.parse.quote(url_path)
    part = destination.with_name(f"{destination.name}.{os.getpid()}.part")
    try:
        with _open(url) as response:
            destination.parent.mkdir(parents=True, exist_ok=True)
            _save(response, part, destination.name)
        with open_hdf5(part):
            pass
        part.replace(destination)
    except (OSError, http.client.HTTPException, ValueError, UserError) as error:
        reason = one_line(error).removeprefix(f"{part}: ")
        minis = ", ".join(name for name in tasks.TASKS if name.endswith("-mini"))
        raise UserError(
            f"cannot download {url} ({reason}); put that file at {destination} yourself, or use a "
            f"bundled task: {minis}"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone, or never written
            part.unlink()
    return destination


def _open(url: str) -> http.client.HTTPResponse:
    """`urlopen` with a deadline for everything up to the response's headers.

    Socket timeouts do not cover the lookup of the name, which may hang for minutes without a
    network; hence the thread, which is abandoned at the deadline.
    """
    result: list[http.client.HTTPResponse | Exception] = []

    def connect() -> None:
        try:
            result.append(urllib.request.urlopen(url, timeout=SILENCE_SECONDS))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not result:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _save(response: http.client.HTTPResponse, part: Path, name: str) -> None:
    length = response.headers.get("Content-Length")
    total = int(length) if length is not None else None
    with (
        part.open("wb") as file,
        tqdm(total=total, desc=name, unit="B", unit_scale=True) as progress,
    ):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            progress.update(len(chunk))
        received = file.tell()
    if total is not None and received != total:
        raise OSError(f"the transfer broke off after {received} of {total} bytes")
