"""The file format of a task: Parquet files of labelled images, local, remote and cached."""
