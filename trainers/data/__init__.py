"""ImageDataset: the Parquet format of the project and the data sets that are written in it."""
