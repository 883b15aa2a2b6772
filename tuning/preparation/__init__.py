"""`lipsum-tune prepare`: pictures in any usual layout, made into the project's Parquet shards."""
