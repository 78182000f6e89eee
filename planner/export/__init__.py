"""Plans turned into files that other tools read."""
