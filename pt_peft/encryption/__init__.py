"""Encryption of what sites send, which the server adds up without reading it."""
