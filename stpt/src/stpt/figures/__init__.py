"""The paper's pictures: what they show, and the drawing."""
