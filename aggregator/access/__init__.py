"""Who may have what: tokens, agreements, and the trail of what was downloaded."""
