"""What a run writes down and reads again: folders and files, metrics, protocol, identity, fingerprints."""
