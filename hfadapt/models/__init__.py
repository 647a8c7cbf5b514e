"""Models: resolved, described, loaded, adapted, merged, identified."""
