"""Tables, figures and descriptions of one run."""
