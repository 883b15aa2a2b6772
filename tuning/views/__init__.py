"""Reports of a search: tables in the terminal, Parquet files, figures, progress."""
