"""Everything about ranks: collectives and batch norm over the global batch."""
