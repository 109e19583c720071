"""A certificate for tests of TLS, made for localhost; its key protects nothing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CERTIFICATE", "ENCRYPTED_KEY", "KEY", "OTHER_KEY", "written"]

# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUd0+wJk7Jj9+CxKIZh2kBaQLbaHowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEzMDE1MDUxMloYDzIxMjYxMTA2
MTUwNTEyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARGmUWnn4Dbpj6hwbEWI5fS1GhFetd0yN7OvQXTcHY1W739TuODzRmI
F/NiLi8Ox8V8btrT3RGcknGGRzLYo3UUo28wbTAdBgNVHQ4EFgQU+FLePtqFOI7R
m9LK1GtiDKbPzIIwHwYDVR0jBBgwFoAU+FLePtqFOI7Rm9LK1GtiDKbPzIIwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAOCHRh99FGC4ntn80Woz/vhqqKRwGKoL7pFQYWjX2rKZAiA5
RtxqTxYCZYAZcBwV2hPxoOTZ0MWMAZsoMb/eDoLQUw==
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgwelIKkKjLwjEJhSa
9dBdkYpdhgNbwNhYU0/LR6ra+wuhRANCAARGmUWnn4Dbpj6hwbEWI5fS1GhFetd0
yN7OvQXTcHY1W739TuODzRmIF/NiLi8Ox8V8btrT3RGcknGGRzLYo3UU
-----END PRIVATE KEY-----
"""
# The same, with a password.
ENCRYPTED_KEY = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhDt6909eB5pQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEENnOLFkkwZiaVPFeRFiBHQwEgZCi
48iPTzXa5xbf7gW9DD5KjNT+Laih2wg/8tfawoBd4pxlECR91Vu0m2V25hGh2I7S
YIoKAFYdEZSn7Cem7F05xCyGVkW48sai+RVjuDCATcoM4gGTM/XvrWM2qY8iK9f9
65FsKxiXQTcrtPI2lMD2GpgjvUKbJgNJFVM1tIyWfYRTevTHXW7Zwbki5rpxZPg=
-----END ENCRYPTED PRIVATE KEY-----
"""
OTHER_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrVjIu2YbMfeJhdve
ryNSgbn21MUo2HSpjpF6k6SRsz6hRANCAAQM2cn6w6pDjK4Xwp0uwdbvuHzOY7VP
X/43CO/GJUm56vddhXtKUZt6ojoplLXwpjSvbAaiqARGmlmVfpwqVK3Q
-----END PRIVATE KEY-----
"""


def written(folder: Path, **texts: str) -> dict[str, Path]:
    """Write files; return their paths by name."""
    found = {name: folder / f"{name}.pem" for name in texts}
    for name, path in found.items():
        path.write_text(texts[name], encoding="ascii")
    return found
