"""An S3 server on loopback for tests, and URLs under it: `from tests.s3_server import s3_url`."""

import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of the server, in this process's environment too: whatever is started from here finds
    it.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    before = dict(os.environ)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    try:
        yield os.environ["AWS_ENDPOINT_URL"]
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def s3_url(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's URL with a prefix; mirrors are made under tmp_path."""
    import fsspec

    bucket = f"bucket-{secrets.token_hex(4)}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    on_machine(tmp_path / "here", monkeypatch)
    return f"s3://{bucket}/some runs"


def on_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process works as on another machine, whose temporary folder this is."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
