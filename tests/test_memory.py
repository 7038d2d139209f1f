"""The setting of the C library is made where it exists."""

import platform

from vmfcoop.memory import keep_freed_memory


def test_made_on_glibc_only(monkeypatch):
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False
