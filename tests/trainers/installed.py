"""A package of which another version seems to be installed."""


def install(monkeypatch, folder, package):
    """Let `importlib.metadata` find the record of a version that was never released."""
    record = folder / package / f"{package}-0.0.1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(record.parent)
