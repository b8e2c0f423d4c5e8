"""Captions: how all next tokens are computed in one pass, and how the best text is searched for."""
