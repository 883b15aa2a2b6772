"""Tables of a search as Parquet files."""
