"""The two ends of a round, site and server, whatever carries their messages."""
