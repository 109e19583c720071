"""The demo's picture model: scenes of shapes, a small vision encoder and its language model."""
