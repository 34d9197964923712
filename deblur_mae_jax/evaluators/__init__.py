"""How a trained network is judged, and the report that shows it."""
