"""Ray clusters: connection, addresses, local clusters and what ends them."""
