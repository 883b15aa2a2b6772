"""`lipsum-tune prepare`: images in any usual layout, made into the project's Parquet shards."""
