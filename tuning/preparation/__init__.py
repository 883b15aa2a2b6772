"""`lipsum-tune prepare`: images of any source, checked and written as Parquet."""
