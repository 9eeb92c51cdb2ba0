"""Create an object unless one of that name exists: the conditional PUT of S3 and GCS, which pyarrow has not.

S3 takes it as ``If-None-Match: *`` (since August 2024, and most S3-compatible stores by now), GCS as
``x-goog-if-generation-match: 0``. obstore, over Rust's object_store, which Delta Lake and DataFusion write through,
speaks both behind one call; boto3 alone would do for S3 only. Of boto3 comes what finds the keys, since obstore itself
looks at the environment and the instance's role, but at no profile in ``~/.aws``: boto3's chain is that of pyarrow's
AWS SDK. On Google Cloud both look for application default credentials.

pyarrow writes and reads everything else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from obstore import delete, put
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import GCSStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSConfig, RetryConfig, S3Config

_UNKNOWN = ("NotImplemented", "status code: 501")  # how a store answers that does not know the condition


class Bucket:
    """The objects of one bucket, by name. Failures are OSErrors; a client is opened at the first request."""

    def __init__(
        self, scheme: str, name: str, options: Mapping[str, str], region: str, connect_s: float, request_s: float
    ) -> None:
        """Take ``s3`` or ``gs``, a bucket, the connection parameters of a store's URI and, for S3, its region.

        A connection may take ``connect_s`` seconds, a request ``request_s``, with its few repetitions.
        """
        self._scheme, self._name, self._options, self._region = scheme, name, dict(options), region
        self._client: ClientConfig = {
            "connect_timeout": timedelta(seconds=connect_s),
            "timeout": timedelta(seconds=request_s),
            "allow_http": options.get("scheme") == "http",
        }
        self._retry: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=request_s)}
        self._lock = threading.Lock()
        self._opened: S3Store | GCSStore | None = None

    def create(self, key: str, data: memoryview) -> bool | None:
        """Write an object unless there is one; return whether it was written, None if the store cannot tell.

        False may come of this very call, if the answer to its first attempt was lost: whoever must know reads the
        object. A store that ignores the condition writes, and answers as if there had been none.
        """
        try:
            with _plainly():
                put(self._store(), key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except NotSupportedError:
            return None
        except OSError as error:
            if any(word in str(error) for word in _UNKNOWN):
                return None
            raise
        return True

    def delete(self, key: str) -> None:
        """Remove an object, if it exists, in one request."""
        with _plainly(), contextlib.suppress(FileNotFoundError):
            delete(self._store(), key)

    def _store(self) -> S3Store | GCSStore:
        with self._lock:
            self._opened = self._opened or self._open()
        return self._opened

    def _open(self) -> S3Store | GCSStore:
        options = self._options
        endpoint = (
            f"{options.get('scheme', 'https')}://{options['endpoint_override']}"
            if "endpoint_override" in options
            else None
        )
        anonymous = options.get("anonymous") == "true"
        if self._scheme == "gs":
            google: GCSConfig = {"base_url": endpoint} if endpoint else {}
            if anonymous:
                google["bearer_token"] = ""  # skip_signature asks for a token before a conditional PUT all the same
            return GCSStore(self._name, config=google, client_options=self._client, retry_config=self._retry)
        amazon: S3Config = {
            "region": self._region,
            "skip_signature": anonymous,
            **({"endpoint": endpoint} if endpoint else {}),
        }
        return S3Store(
            self._name,
            config=amazon,
            client_options=self._client,
            retry_config=self._retry,
            credential_provider=None if anonymous else _amazon_keys(),
        )


def _amazon_keys() -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:
        raise OSError("found no AWS credentials in the environment, in ~/.aws, or of this machine's role") from None


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Turn obstore's errors, but those on conditions, into OSErrors without its trace of nested causes."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError, NotSupportedError):
        raise
    except (BaseError, FileNotFoundError) as error:  # the latter for a missing bucket
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(str(error).partition("\n\nDebug source")[0]) from None
