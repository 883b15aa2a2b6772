"""`lipsum-tune prepare`: images in a usual layout, made into the project's Parquet shards."""
