"""What a cluster can do, checked before it is used."""
