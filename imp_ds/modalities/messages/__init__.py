"""Conversations with media in them."""
