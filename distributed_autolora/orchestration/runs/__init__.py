"""Training runs on a cluster: names, folders, Ray Train, results."""
