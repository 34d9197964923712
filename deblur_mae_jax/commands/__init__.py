"""Programs other than training: search, probe, predict, segment, plan."""
