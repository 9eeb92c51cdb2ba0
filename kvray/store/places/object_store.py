"""Store URIs, and object stores (S3 and compatible ones, Google Cloud Storage) under a store.

An object appears whole when its write ends: one PUT up to 10 MB, one multipart upload above. What a killed writer
leaves of an upload is invisible until the bucket's lifecycle rule for incomplete uploads removes it.

"Create unless it exists" is a conditional PUT (:mod:`kvray.store.places.conditional`). A store that does not know the
condition writes: of two that create the same file within one moment, the later one wins there.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from kvray.errors import InputError
from kvray.store.patience import DISK_S, STORE_S, Patience
from kvray.store.places.conditional import Bucket
from kvray.store.places.files import Files, nearest, redacted
from kvray.store.places.local import LocalFiles

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 10.0
LOOK_S = 30.0
"""For which the first look at a bucket is tried again: what lasts seconds
passes, and a silent endpoint is told within a minute."""
LENT_ATTEMPTS = 10
"""At each request of whoever has no patience of its own: other libraries, and the parts of a large upload."""
PARAMETERS = {
    "s3": ("endpoint_override", "scheme", "region", "anonymous"),
    "gs": ("endpoint_override", "scheme", "anonymous"),
}
_EXPECTED = "a directory, s3://bucket/prefix or gs://bucket/prefix"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_PIECE = 64 * 2**20
_ONE_REQUEST = 5 * 2**20  # what pyarrow sends in one PUT for sure


@dataclass(frozen=True)
class Location:
    """A parsed store URI: absolute, and free of credentials by construction."""

    scheme: str  # local, s3 or gs
    uri: str  # opens the same place from any working directory
    root: str  # the store's root inside the file system: /data/store, bucket/prefix
    options: tuple[tuple[str, str], ...] = ()  # connection parameters of the URI, name and value


def locate(uri: str, named: str = "store") -> Location:
    """Read a store URI without touching the place; ``named`` is what messages call it.

    Raises InputError for an unknown scheme or parameter, no bucket, or credentials, which the message does not repeat.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", uri)
    kind = scheme[1].lower() if scheme else "local"
    if not uri.strip() or "\0" in uri:
        raise InputError(f"{named}: found an empty name; expected {_EXPECTED}")
    if kind == "file" and uri[5:].startswith("///"):
        kind, uri = "local", uri[7:]
    if kind == "local":
        path = os.path.abspath(os.path.expanduser(uri))
        return Location("local", path, path)
    if kind not in PARAMETERS:
        raise InputError(f"{named}: found scheme {kind}://; expected {_EXPECTED}")
    parts = urlsplit(uri)
    if "@" in parts.netloc + parts.path or parts.fragment:
        raise InputError(
            f"{named}: the {kind}:// URI seems to carry credentials; expected {kind}://bucket/prefix alone. "
            "Put keys into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise InputError(f"{named}: found no valid bucket name after {kind}://; expected {kind}://bucket/prefix")
    prefix = parts.path.strip("/")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise InputError(f"{named}: the prefix in {kind}://{parts.netloc} has an empty, '.' or '..' part")
    options = parse_qsl(parts.query, keep_blank_values=True)
    known, names, values = PARAMETERS[kind], [name for name, _ in options], dict(options)
    problems = [
        f"{named}: unknown parameter {name[:40]!r} in the {kind}:// URI; allowed: {', '.join(known)} "
        "(keys belong into the environment)"
        for name in names
        if name not in known
    ]
    problems += [f"{named}: parameter {name} is given twice" for name in known if names.count(name) > 1]
    problems += [
        f"{named}: parameter {name}: expected {' or '.join(allowed)}"
        for name, allowed in (("scheme", ("http", "https")), ("anonymous", ("true", "false")))
        if values.get(name, allowed[0]) not in allowed
    ]
    if problems:
        raise InputError(problems)
    endpoint = re.fullmatch(r"(?:(https?)://)?([A-Za-z0-9._\[\]:-]+)/?", values.get("endpoint_override", "host"))
    if endpoint is None:
        raise InputError(f"{named}: parameter endpoint_override: expected http://host:port or host:port")
    if "endpoint_override" in values:
        values["endpoint_override"] = endpoint[2]
        values.setdefault("scheme", endpoint[1] or "https")
    root = f"{parts.netloc}/{prefix}" if prefix else parts.netloc
    return Location(kind, uri, root, tuple(sorted(values.items())))


def connect(location: Location, named: str = "store", patience_s: float | None = None, reached: bool = False) -> Files:
    """Open the file system of a location, called ``named`` in messages; a bucket is looked up once.

    ``patience_s`` is for how long the place may then not answer, by default :data:`~kvray.store.patience.STORE_S` or,
    of a disk, :data:`~kvray.store.patience.DISK_S`. Raises InputError if the bucket is missing, forbidden or out of
    reach: after a minute at most or, if another process has ``reached`` it, when patience ends.
    """
    prefix = "" if named == "store" else f"{named}: "
    if location.scheme == "local":
        if not os.path.isdir(found := nearest(location.root)):
            raise InputError(f"{named}: {found} is a file; expected a directory")
        return LocalFiles(Patience(location.root, DISK_S if patience_s is None else patience_s), prefix)
    options, bucket = dict(location.options), location.root.split("/", 1)[0]
    at = f" at {options['endpoint_override']}" if "endpoint_override" in options else ""
    where = f"{location.scheme}://{bucket}{at}"
    patience = Patience(where, STORE_S if patience_s is None else patience_s)

    def look() -> tuple[pafs.FileSystem, pafs.FileSystem, pafs.FileType]:
        fs, lent = (_file_system(location.scheme, bucket, options, attempts) for attempts in (1, LENT_ATTEMPTS))
        return fs, lent, fs.get_file_info(bucket).type

    try:
        with contextlib.nullcontext() if reached else patience.at_most(LOOK_S):
            fs, lent, kind = patience(look)
    except (OSError, pa.ArrowException) as error:
        hint = "check endpoint_override, the network and the credentials in the environment"
        raise InputError(f"{named}: cannot reach {where}: {redacted(error)}; {hint}") from None
    if kind == pafs.FileType.NotFound:
        raise InputError(f"{named}: there is no bucket {where}, or these credentials may not see it; create it first")
    region = fs.region if location.scheme == "s3" else ""
    objects = Bucket(location.scheme, bucket, options, region, CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S)
    return ObjectFiles(fs, patience, f"{prefix}{location.scheme}://", lent, objects)


class ObjectFiles(Files):
    """An object store through pyarrow, and through ``bucket`` for what pyarrow cannot."""

    remote = True

    def __init__(
        self,
        fs: pafs.FileSystem,
        patience: Patience,
        prefix: str = "",
        lent: pafs.FileSystem | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        super().__init__(fs, patience, prefix, lent)
        self._bucket = bucket

    def put(self, path: str, data: memoryview) -> None:
        def write() -> None:
            # pyarrow cannot abandon a stream: dropped half written, it completes the upload with what it has. So parts
            # go out in the background, where a failed part fails the upload, from a thread that no Ctrl-C cuts short.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._upload, path, data.cast("B")).result()

        self.patiently(path, f"write {data.nbytes:,} bytes", write)

    def _upload(self, path: str, data: memoryview) -> None:
        # A large one has many parts, any of which may fail: they are tried again one by one.
        stream = (self.fs if data.nbytes <= _ONE_REQUEST else self.lent).open_output_stream(path)
        for start in range(0, data.nbytes, _PIECE):
            if start:
                stream.flush()  # waits for the parts in flight, which are copies: bounds the memory
            stream.write(pa.py_buffer(data[start : start + _PIECE]))
        stream.close()

    def put_new(self, path: str, data: memoryview) -> bool:
        bucket, created = self._bucket, None
        if bucket is not None:
            doing = f"write {data.nbytes:,} bytes"
            created = self.patiently(path, doing, lambda: bucket.create(_key(path), data.cast("B")))
        if created is None:  # the store does not know the condition
            self.put(path, data)
        return created is not False

    def delete(self, path: str) -> None:
        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                if self._bucket is not None:
                    self._bucket.delete(_key(path))  # one request; pyarrow looks for the folder then, too
                else:
                    self.fs.delete_file(path)

        self.patiently(path, "delete", delete)

    def clean(self, path: str, names: Iterable[str]) -> None:
        """Do nothing: an unfinished write leaves no object."""

    def abandoned(self, path: str) -> bool:
        return True


def _key(path: str) -> str:
    """Return the name inside its bucket of what lies at a path."""
    return path.partition("/")[2]


def _file_system(scheme: str, bucket: str, options: Mapping[str, str], attempts: int) -> pafs.FileSystem:
    shared: dict[str, Any] = {"scheme": "https", **options, "anonymous": options.get("anonymous") == "true"}
    if scheme == "gs":
        return pafs.GcsFileSystem(**shared, retry_time_limit=timedelta(seconds=attempts * REQUEST_TIMEOUT_S))
    region = shared.pop("region", "") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        # With an own endpoint the region is a formality; looking it up would ask Amazon.
        region = "us-east-1" if "endpoint_override" in options else pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        **shared,
        region=region,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # small objects in one PUT instead of a multipart upload
        background_writes=True,  # see ObjectFiles.put
    )
