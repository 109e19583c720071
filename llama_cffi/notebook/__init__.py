"""For notebooks: plots, and a widget that regenerates from any token."""
