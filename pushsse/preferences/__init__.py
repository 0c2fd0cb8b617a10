"""People's own switches: the catalogue of event types, and who has which of them off."""
