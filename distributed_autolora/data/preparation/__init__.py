"""From published archives, folders and CSV lists to the Parquet files of a task."""
