"""The demo picture model: synthetic scenes of shapes, a small vision encoder, and its language model."""
