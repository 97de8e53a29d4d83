"""Report, tables, figures and statistics of one study."""
