"""Programs beside training: search, probe, predict, segment, plan."""
