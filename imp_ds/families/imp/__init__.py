"""IMP (arXiv 2305.06324): one encoder for image, video, audio and text, trained by objectives that a recipe lists."""
