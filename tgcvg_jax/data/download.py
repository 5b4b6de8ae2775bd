"""Downloading D4RL files and Minari datasets."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
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
        with open_url(url) as response:
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


# Minari writes into the store that an environment variable names, and prints to stdout. A process
# of its own keeps both from this one. Its only words on stdout are the reason of a failure.
_MINARI = """
import contextlib, sys
out = sys.stdout
with contextlib.redirect_stdout(sys.stderr):
    try:
        import minari
        minari.download_dataset(sys.argv[1])
    except Exception as error:
        print(type(error).__name__, error, file=out)
"""
_MINARI_FILE = "data/main_data.hdf5"


def fetch_minari(dataset_id: str, root: Path) -> Path:
    """Downloads a dataset with Minari, its progress on stderr.

    The dataset appears in the store only when it is whole; nothing is left behind otherwise.

    Args:
      dataset_id: an id.
      root: the store it goes to.

    Returns:
      The dataset's directory.

    Raises:
      UserError: the download failed; says how to get the dataset by hand.
    """
    destination, temporary = root / dataset_id, None
    try:
        _reach_minari()
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".download.", dir=root))
        result = subprocess.run(
            [sys.executable, "-c", _MINARI, dataset_id],
            env=os.environ | {"MINARI_DATASETS_PATH": str(temporary)},
            stdout=subprocess.PIPE,
            text=True,
        )
        if result.returncode or result.stdout.strip():
            raise OSError(result.stdout.strip() or f"status {result.returncode}")
        if not (temporary / dataset_id / _MINARI_FILE).is_file():
            raise OSError(f"it came without {_MINARI_FILE}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        (temporary / dataset_id).rename(destination)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"cannot download the Minari dataset {dataset_id} ({one_line(error)}); where there is "
            f"a network run `pip install 'minari[hf]'` and `minari download {dataset_id}`, then "
            f"bring the folder to {destination}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return destination


def _reach_minari() -> None:
    """Raises if Minari's server does not answer soon: its client would go on trying."""
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("MINARI_REMOTE", "").startswith("gcp:"):
        url = "https://storage.googleapis.com"
    with contextlib.suppress(urllib.error.HTTPError):  # an answer, too
        open_url(url).close()


def open_url(url: str) -> http.client.HTTPResponse:
    """`urlopen` with a deadline for everything up to the response's headers.

    Socket timeouts do not cover the lookup of the name, which may hang for minutes without a
    network; hence the thread, which is abandoned at the deadline.

    Raises:
      OSError: no connection, no answer in time, or an HTTP error.
      ValueError: not a URL.
      http.client.HTTPException: what came is not HTTP.
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
