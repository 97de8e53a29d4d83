"""Studies on a cluster: planned runs, Ray Tune trials, progress."""
