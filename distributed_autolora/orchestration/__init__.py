"""The cluster: runs, Ray and MLflow."""
